"""The way of a rank through a run: what a start makes, epochs of steps, saving and resuming."""
