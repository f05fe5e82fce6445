"""A torchrun-native elastic launcher for bundle-based hybrid parallelism.

Importing this package loads nothing. `launcher`, `workers`, `splits` and `slurm` lie at the top of
the repository and are linked here, so that a checkout and an installation have the same names.
"""
