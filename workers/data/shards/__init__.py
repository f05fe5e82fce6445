"""Samples in a few large files, .tar or .parquet, each found by its number and read by itself."""
