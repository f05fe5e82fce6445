"""Gathers the facts of one node: files of the system, other programs, trials in a folder."""
