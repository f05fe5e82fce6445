"""The state of a stage by name, and checkpoints of it on disk."""
