"""One stage's part of a graph: its steps, what it receives, what it hands on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from torch import fx

from bundlerun.splits.graph.flow import Flow
from bundlerun.splits.stage import StagePart, overwritable
from bundlerun.splits.tracing.region import enter_regions


def extract(
    flow: Flow, cuts: Sequence[int], stage: int, *, marks: Sequence[int] | None = None
) -> StagePart:
    """What one stage does.

    Args:
        flow: the whole graph.
        cuts: boundaries, increasing, none of them blocked.
        stage: index of the stage.
        marks: boundaries of which the stage tells its first argument, which comes before the
            inputs: `enter(number + 1, what crosses)`, before it goes on; None: it has none.
    """
    return _Extraction(flow, cuts, stage, marks).part()


class _Extraction:
    def __init__(
        self, flow: Flow, cuts: Sequence[int], stage: int, marks: Sequence[int] | None
    ) -> None:
        self._flow = flow
        self._cuts = cuts
        self._stage = stage
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._marks: Mapping[int, int] = {place: i + 1 for i, place in enumerate(marks or ())}
        self._told = None if marks is None else self._graph.placeholder("bundlerun_marks")

    def part(self) -> StagePart:
        self._receive()
        for node in self._flow.graph.nodes:
            # A size with users is worked out by those who need it, an assertion has none.
            is_size = node in self._flow.values and bool(node.users)
            if self._is_mine(node) and not is_size:
                self._mark(node)
                self._take(node)
        outputs: tuple[str, ...] = ()
        if self._stage == len(self._cuts):
            (output,) = self._flow.graph.find_nodes(op="output")
            self._graph.output(fx.node.map_arg(output.args[0], self._take))
        else:
            # In graph order on both sides of a boundary: that order is all the agreement there is.
            sent = self._flow.crossing(self._cuts[self._stage])
            self._graph.output(tuple(self._take(node) for node in sent))
            outputs = tuple(self._flow.qualified_names[node] for node in sent)
        # Last: only the finished graph shows where each region begins and ends.
        enter_regions(self._graph)
        return StagePart(graph=self._graph, outputs=outputs)

    def _receive(self) -> None:
        if self._stage == 0:
            for node in self._flow.graph.find_nodes(op="placeholder"):
                self._made[node] = self._graph.node_copy(node)
            return
        received = self._flow.crossing(self._cuts[self._stage - 1])
        for node in received:
            self._made[node] = self._graph.placeholder(node.name)
        for node in received:
            # Whether a module of the user's overwrites it shows only when it runs.
            self._made[node] = self._graph.call_function(overwritable, (self._made[node],))

    def _mark(self, node: fx.Node) -> None:
        """Tells of the boundary before a step, where there is one to be told."""
        place = self._flow.place[node]
        if place not in self._marks or self._flow.steps_at(place) is not node:
            return
        crossing = tuple(self._take(each) for each in self._flow.crossing(place))
        mark = self._graph.call_method("enter", (self._told, self._marks[place], crossing))
        mark.meta = dict(node.meta)  # so that no region is left for it

    def _is_mine(self, node: fx.Node) -> bool:
        # No steps: inputs are received, state is taken where it is used.
        if node.op in ("placeholder", "get_attr", "output"):
            return False
        return bisect_right(self._cuts, self._flow.place[node]) == self._stage

    def _take(self, node: fx.Node) -> fx.Node:
        """The node in the stage's graph; state and sizes are taken where they are first needed."""
        if node not in self._made:
            self._made[node] = self._graph.node_copy(node, self._take)
        return self._made[node]
