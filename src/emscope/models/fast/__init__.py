"""The same numbers in less time and memory, each way beside a proof that it holds."""
