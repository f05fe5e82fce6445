"""Benchmarks that take this machine as it is: one rank, or a few."""
