"""What an agent knows of the ranks that it has started, and what it tells them."""
