"""What a user names: a model, the weights it starts from, a file of Python. All without torch."""
