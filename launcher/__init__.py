"""What runs where, and starting it; importing this package never imports torch."""
