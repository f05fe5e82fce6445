"""Options: declared once, read from three places, told where they are wrong; what endpoints are."""
