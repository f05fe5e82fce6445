"""How libraries call the same tensors: a table for each family of models."""
