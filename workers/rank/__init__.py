"""Who this rank is and whom it can talk to; every other room may come in."""
