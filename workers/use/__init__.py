"""A trained model in use: evaluated, asked for classes, written for other libraries."""
