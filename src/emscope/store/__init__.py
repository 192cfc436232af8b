"""The study folder: ledger, lock, versioned Parquet tables. Writes are atomic; finished work is found by key."""
