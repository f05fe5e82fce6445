"""Subcommands that look at a run or a machine and change nothing; none imports torch."""
