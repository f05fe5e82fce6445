"""No order of an evaluation lets ranks wait in a circle, however little links hold."""

from __future__ import annotations

from collections import defaultdict
from graphlib import TopologicalSorter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bundlerun.launcher.layout.schedule import Action, Pipeline, group_sizes
from bundlerun.launcher.layout.shape import Shape

Node = tuple[int, int, Action]
"""Stage, replica and what it does."""


def waits(pipeline: Pipeline, num_microbatches: int, max_ahead: int) -> dict[Node, set[Node]]:
    """Which action must be done before which, as `receive` and `send` wait for each other."""
    shape, stages = pipeline.shape.widths, pipeline.shape.num_stages
    found: dict[Node, set[Node]] = defaultdict(set)
    sent: dict[tuple[object, ...], list[tuple[Node, Node]]] = defaultdict(list)
    for stage, width in enumerate(shape):
        for replica in range(width):
            order = pipeline.forward_order(stage, replica, num_microbatches)
            nodes = [(stage, replica, action) for action in order]
            for before, after in pairwise(nodes):
                found[after].add(before)
            for node in nodes:
                chunk, j = node[2].chunk * stages + stage, node[2].microbatch
                ends = [chunk + 1] if chunk < pipeline.num_chunks - 1 else []
                ends += [pipeline.num_chunks - 1] if chunk == 0 and stages > 1 else []
                for number, to in enumerate(ends):
                    peer = j % shape[to % stages]
                    taker = (to % stages, peer, Action(node[2].kind, j, to // stages))
                    found[taker].add(node)
                    sent[number, stage, replica, chunk, to, peer].append((node, taker))
    for messages in sent.values():
        for (sender, _), (_, taker) in zip(messages[max_ahead:], messages, strict=False):
            found[sender].add(taker)
    return found


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    chunks=st.integers(1, 3),
    num_microbatches=st.integers(0, 40),
)
def test_evaluations_with_a_group_ahead_never_wait_in_a_circle(
    shape: tuple[int, ...], chunks: int, num_microbatches: int
) -> None:
    pipeline = Pipeline(
        shape=Shape(shape),
        schedule="interleaved" if chunks > 1 else "1f1b",
        chunks_per_stage=chunks,
    )
    max_ahead = max(group_sizes(shape, num_microbatches)) if chunks > 1 else 1
    TopologicalSorter(waits(pipeline, num_microbatches, max_ahead)).prepare()
