"""Parsers of commands, apart from what the commands need to work.

So `--help` and completion, which are to answer at once, load only the options.
"""
