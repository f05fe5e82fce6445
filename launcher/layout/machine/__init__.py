"""What the machine itself says: its GPUs and where they hang, cores that are allowed, and taken."""
