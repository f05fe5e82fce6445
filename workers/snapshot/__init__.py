"""Copies of the state in the memory of the nodes: taken after steps, found again at a restart."""
