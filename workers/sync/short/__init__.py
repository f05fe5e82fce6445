"""What travels between nodes in fewer bytes, and what is lost by that. For `sync` alone."""
