"""Pure: how nodes agree on rounds; events go in, the next state and wishes come out."""
