"""Looks for silent corruption: state that differs between its copies, work that two do unlike."""
