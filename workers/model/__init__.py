"""This rank's part of the user's model: built, checked, and what its forward writes."""
