"""Ranks of launchers that start a Python for each: from the second start on they are forks."""
