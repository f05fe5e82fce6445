"""Machines that are no machines: hosts on this one, and jobs on them."""
