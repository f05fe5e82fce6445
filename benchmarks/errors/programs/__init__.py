"""Copied into the folder in which the cases run: what a user brings."""
