"""Our rendezvous handler: how nodes agree on who takes part, whatever dies meanwhile."""
