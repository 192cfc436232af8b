"""The study folder: ledger, lock, versioned Parquet tables. Writes are atomic; what is done is known by key."""
