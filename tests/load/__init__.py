"""The load benchmarks: `python -m tests.load [streams|coalesce|dashboard|emitting] --help`."""
