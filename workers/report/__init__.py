"""How a run tells of itself: console, history, summary."""
