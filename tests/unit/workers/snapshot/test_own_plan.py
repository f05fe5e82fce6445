"""What ranks have kept for themselves: each part is taken up once, wherever it lies."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.own_plan import plan_own
from bundlerun.workers.snapshot.piece import Label, SnapshotId, Spec
from bundlerun.workers.snapshot.restore_plan import Piece

HERE = SnapshotId(4, "b")
NAMES = "pqrs"


def piece(situation: str, names: str, which: SnapshotId = HERE) -> Piece:
    label = Label(
        step=which.step,
        token=which.token,
        stage=0,
        num_stages=1,
        num_names=len(names),
        progress=Progress(step=which.step, epoch=0, step_in_epoch=0, samples_seen=0),
        situation=situation,
    )
    return Piece(label, {name: Spec("float32", (2,)) for name in names})


def test_a_rank_that_is_elsewhere_gets_its_own() -> None:
    found = plan_own([[piece("x", "pq")], [piece("y", "pq")]], HERE, {"x": 0, "y": 2}, lambda _: ())
    (moved,) = found.transfers
    assert (moved.source, moved.target, moved.label.situation) == (1, 2, "y")
    assert list(moved.specs) == ["p", "q"]
    assert not found.taken


def test_parts_of_a_layout_that_is_no_more_go_to_who_has_to_do_with_them() -> None:
    nodes = {"p": (1, 3), "q": (2,), "r": ()}
    found = plan_own(
        [[piece("x", "pqr")], [], [], [piece("x", "p")]], HERE, {}, lambda name: nodes[name]
    )
    assert found.taken == {3: {"x": ["p"]}, 2: {"x": ["q"]}}, "node 3 has a copy of p"
    assert [(t.source, t.target, [*t.specs]) for t in found.transfers] == [(0, 2, ["q"])]


def test_only_parts_of_the_very_state_count() -> None:
    older, other = SnapshotId(3, "b"), SnapshotId(4, "a")
    have = [[piece("x", "p", older), piece("x", "p", other)]]
    found = plan_own(have, HERE, {}, lambda _: (0,))
    assert not found.transfers
    assert not found.taken


@settings(max_examples=200)
@given(st.data())
def test_each_part_is_taken_up_once_by_a_node_that_can(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 4))
    nodes = st.integers(0, num_nodes - 1)
    some = st.lists(st.sampled_from(NAMES), unique=True).map("".join)
    have = [
        [piece(situation, data.draw(some)) for situation in "xyz" if data.draw(st.booleans())]
        for _ in range(num_nodes)
    ]
    now = data.draw(st.dictionaries(st.sampled_from("xyz"), nodes))
    wanted = {name: data.draw(st.lists(nodes, unique=True)) for name in NAMES}
    found = plan_own(have, HERE, now, lambda name: wanted[name])
    assert found == plan_own(have, HERE, now, lambda name: wanted[name])

    held: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
    for node, here in enumerate(have):
        held[node] = {(p.label.situation, name) for p in here for name in p.specs}
    everything = set().union(*held.values())
    for one in found.transfers:
        parts = {(one.label.situation, name) for name in one.specs}
        assert parts <= held[one.source]
        assert not parts & held[one.target], "nobody gets what it has"
        held[one.target] |= parts
    took = Counter(
        (situation, name)
        for node, of_node in found.taken.items()
        for situation, names in of_node.items()
        for name in names
        if (situation, name) in held[node] and node in wanted[name]
    )
    assert took == Counter(
        {(s, name) for s, name in everything if s not in now and wanted[name]}
    ), "once, by a node that has it and can"
    for situation, node in now.items():
        assert {part for part in everything if part[0] == situation} <= held[node]
