"""The files of one run: where they are, who holds them, what they say; all may come in."""
