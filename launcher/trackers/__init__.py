"""Experiment trackers: each step of a run's history, exactly once, in TensorBoard, W&B and others.

A tracker is told by a process of its own that follows the history; no rank waits for it or imports
it. Who may come in: `workers/report`, which starts such processes, and the command `track`.
See docs/trackers.md. To add a tracker, make a class as in `interface.py` and an entry point.
"""
