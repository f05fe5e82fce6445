"""How a process of the user becomes a rank, and how it ends by an error that a line explains."""
