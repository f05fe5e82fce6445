"""Norms with running statistics: lent for each call, moved once a step by the sums of all."""
