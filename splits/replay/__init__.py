"""Cutting a model by running its own Python on every stage: nothing is captured.

stage 0    forward, for real, until the module of the first cut is entered
stage 1    forward, by results noted before (ghosts), until that module is entered; from there
on for real, with the tensors that stage 0 has sent
"""
