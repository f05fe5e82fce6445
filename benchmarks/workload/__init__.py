"""What is trained or sent while something is measured."""
