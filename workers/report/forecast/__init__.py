"""What steps are foreseen to take, and how far they were from it: `foreseen`, `beside`."""
