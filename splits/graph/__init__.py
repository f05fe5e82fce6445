"""Cutting a model by its graph: which operations each stage does, and what crosses.

The model is recorded once (`bundlerun.splits.tracing`); a cut may be in the middle of a module.
"""
