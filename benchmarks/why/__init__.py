"""Causes planted into small runs, and what `bundlerun why` says of each."""
