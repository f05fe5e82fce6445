"""Several nodes examined together: they meet, and measure every link both ways."""
