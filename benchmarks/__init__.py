"""Each claim of the README as a command: `python -m benchmarks [NAME ...]`."""
