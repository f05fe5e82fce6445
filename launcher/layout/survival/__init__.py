"""What is left of a run, and goes on, when nodes are lost."""
