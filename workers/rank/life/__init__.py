"""A rank's signs of life, who sees them, where it stands when it waits; how all stop together."""
