"""The files of one run: where they lie, who holds them, what they say; all may come in."""
