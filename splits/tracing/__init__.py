"""A model as a graph of operations, and what a graph would lose."""
