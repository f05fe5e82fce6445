"""Where a model comes from: a library by name, or a function of the user's own."""
