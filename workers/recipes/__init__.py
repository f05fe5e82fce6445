"""The recipes that ship with bundlerun."""
