"""What every other package exchanges: errors, specs, records, outcomes, seeds, progress. Imports nothing above it."""
