"""What was found to be corrupted in a run: until where its states are trusted, and who did it."""
