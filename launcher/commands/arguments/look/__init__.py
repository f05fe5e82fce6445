"""Parsers of the commands that look at a run or a machine."""
