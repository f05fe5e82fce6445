"""How a run fares, as a picture: in text for a terminal, and as one HTML file.

All is made from the files of the run folder alone, so it can be made while the run goes on and on
any machine that sees them. Nothing here is loaded by a rank.
"""
