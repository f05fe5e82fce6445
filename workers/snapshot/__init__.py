"""Copies of the state in the memory of the nodes: taken after each step, found again at a restart."""
