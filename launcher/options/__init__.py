"""Options: declared once, read from three places, and told where they are wrong."""
