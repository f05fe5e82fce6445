"""The part of the user's model that a rank has: built, checked, and what its forward writes."""
