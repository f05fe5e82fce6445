"""Weights from files: read, brought from their names to those of the model, and put into it."""
