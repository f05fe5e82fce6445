"""What a failure was measured to cost: what the command takes where nothing else is given.

Three nodes of two CPU ranks and a small model (`recovery` in docs/benchmarks/README.md). Torchrun's
workers write a checkpoint at each step there, so that only time is compared.
"""

from __future__ import annotations

RECOVERY_S = 0.82
"""From SIGKILL of a node to the next finished step."""
JOIN_S = 0.66
"""The longest time without a finished step as a node joins."""
RESTART_S = 12.4
"""From SIGKILL of everything to the next finished step, from a checkpoint."""
RECOVERY_PER_NODE_S = 0.001
"""Processor time of the coordinator for a round, for each node of it; measured with 1,000 and 5,000
nodes on one machine (`rendezvous` in docs/scale.md). Of torchrun nothing is known: none."""
SNAPSHOT_COST = 0.007
"""Of a step's time, with as many as `--snapshot-steps` chooses by itself."""
TORCHRUN_RECOVERY_S = 10.7
"""As RECOVERY_S, by torchrun's own rendezvous; the node that keeps its store is left out."""
TORCHRUN_JOIN_S = 13.5

MTBF_S = 264 * 86400.0
"""Of a node of eight H100: 419 unexpected interruptions of 2,048 of them in 54 days.

Source: "The Llama 3 Herd of Models", 2024, table 5.
"""
