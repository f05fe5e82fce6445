"""Options of a training run by subject: each class has those of the one before, and its own."""
