"""Faults at named places of the product, and the runs that they are injected into."""
