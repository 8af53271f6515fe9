"""The load benchmark: `python -m tests.load.streams --help`."""
