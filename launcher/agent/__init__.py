"""torch's elastic agent with a fork server: starts the ranks, and tells how they ended."""
