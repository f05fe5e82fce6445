"""Draws a run, by matplotlib; each figure for wide and for narrow pages, in colours of the page."""
