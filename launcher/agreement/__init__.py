"""What all nodes of a run, and all its starts, must have alike."""
