"""Who this rank is, whom it can talk to, and what it runs on; every other room may come in."""
