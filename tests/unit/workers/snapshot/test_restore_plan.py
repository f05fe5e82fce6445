"""Random nodes, random pieces: what is chosen is whole, of one step, the newest, and arrives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.piece import Label, Spec, split_by_bytes
from bundlerun.workers.snapshot.restore_plan import Inventory, Piece, newest_state, plan_restore

NAMES = [f"model.{number}" for number in range(12)]
SIZES = {name: 4 * (1 + number * number) for number, name in enumerate(NAMES)}
ROUNDS = [("a", 1), ("a", 2), ("b", 2), ("b", 3), ("c", 3)]
"""Who wrote, and which step: the third did step 2 once more."""


def stages_of(token: str) -> list[list[str]]:
    """How the names are cut in a round: each has another cut."""
    cuts = {"a": [0, 5, 12], "b": [0, 12], "c": [0, 2, 2, 9, 12]}[token]
    return [NAMES[a:b] for a, b in pairwise(cuts)]


def piece(token: str, step: int, stage: int, names: list[str]) -> Piece:
    stages = stages_of(token)
    label = Label(
        step=step,
        token=token,
        stage=stage,
        num_stages=len(stages),
        num_names=len(stages[stage]),
        progress=Progress(step=step, epoch=0, step_in_epoch=step, samples_seen=step),
    )
    return Piece(label, {name: Spec("float32", (SIZES[name] // 4,)) for name in names})


@st.composite
def node_pieces(draw: st.DrawFn) -> list[Piece]:
    """What a node may have: of each stage of a round some shares, as its replicas had cut them."""
    found = []
    for token, step in draw(st.lists(st.sampled_from(ROUNDS), max_size=3, unique=True)):
        for stage, names in enumerate(stages_of(token)):
            shares = split_by_bytes({n: SIZES[n] for n in names}, draw(st.integers(1, 3)))
            keep = draw(st.sampled_from(["all", "all", "some", "none"]))
            for share in shares:
                if keep == "all" or (keep == "some" and draw(st.booleans())):
                    found.append(piece(token, step, stage, share))
    return found


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[list[Piece]], Topology, list[list[str]]]:
    """An inventory, the layout of the next round, and what each of its stages needs."""
    shape = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    nodes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    nodes[0] = max(nodes[0], sum(shape))
    inventory = [draw(node_pieces()) for _ in nodes]
    cuts = sorted(draw(st.integers(0, 12)) for _ in shape[1:])
    needs = [NAMES[a:b] for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]
    return inventory, Topology(Shape(shape), tuple(nodes)), needs


def is_whole(inventory: Inventory, token: str, step: int) -> bool:
    """By the definition: each stage there, each of its names on some node."""
    mine = [p for node in inventory for p in node if (p.label.token, p.label.step) == (token, step)]
    return all(
        any(p.label.stage == stage for p in mine)
        and set(names) <= {n for p in mine if p.label.stage == stage for n in p.specs}
        for stage, names in enumerate(stages_of(token))
    )


@settings(max_examples=200)
@given(situations(), st.integers(-1, 4))
def test_the_newest_whole_state_arrives_everywhere_once(
    situation: tuple[list[list[Piece]], Topology, list[list[str]]], checkpoint_step: int
) -> None:
    inventory, topology, needs = situation
    plan = plan_restore(inventory, checkpoint_step, topology, needs)
    whole = [(step, token) for token, step in ROUNDS if is_whole(inventory, token, step)]
    newest = max((step for step, _ in whole), default=-1)
    # It falls back to the checkpoint exactly where nothing newer is whole.
    assert (plan is None) == (newest <= checkpoint_step)
    if plan is None:
        return
    state = plan.state
    assert state.id.step == newest
    assert (state.id.step, state.id.token) in whole
    assert set(state.specs) == set(NAMES)
    assert state.progress.step == newest

    has = [{name for p in node if p.label.id == state.id for name in p.specs} for node in inventory]
    arrived: Counter[tuple[int, str]] = Counter()
    for transfer in plan.transfers:
        assert set(transfer.names) <= has[transfer.source], "who sends has it by then"
        assert transfer.source != transfer.target
        assert {state.stage_of[name] for name in transfer.names} == {transfer.stage}
        assert not set(transfer.names) & has[transfer.target], "who has it gets it no more"
        has[transfer.target] |= set(transfer.names)
        arrived.update((transfer.target, name) for name in transfer.names)
    assert set(arrived.values()) <= {1}
    for group in topology.sync_groups:
        assert set(needs[group.stage]) <= has[group.node]
    wanted = {(group.node, name) for group in topology.sync_groups for name in needs[group.stage]}
    assert set(arrived) <= wanted, "nothing travels that nobody needs"


@given(situations())
def test_all_ranks_would_plan_alike(
    situation: tuple[list[list[Piece]], Topology, list[list[str]]],
) -> None:
    inventory, topology, needs = situation
    shuffled = [list(reversed(node)) for node in inventory]
    assert plan_restore(inventory, -1, topology, needs) == plan_restore(
        shuffled, -1, topology, needs
    )


def everything(token: str, step: int) -> list[Piece]:
    return [piece(token, step, stage, names) for stage, names in enumerate(stages_of(token))]


def test_no_state_is_made_of_two_rounds_or_two_steps() -> None:
    front, rear = everything("a", 2)
    assert newest_state([[front], [everything("a", 1)[1]]]) is None
    found = newest_state([[front, *everything("b", 2)], [everything("a", 1)[1]]])
    assert found is not None
    assert found.id.token == "b"
    assert newest_state([[front], [rear]]) is not None


def test_a_stage_without_tensors_has_to_be_there_too() -> None:
    stages = everything("c", 3)
    assert not stages[1].specs
    assert newest_state([stages]) is not None
    assert newest_state([[stages[0], *stages[2:]]]) is None


def test_what_the_step_came_to_is_what_its_last_stage_says() -> None:
    def saying(found: Piece, row: dict[str, object]) -> Piece:
        progress = replace(found.label.progress, row=row)
        return replace(found, label=replace(found.label, progress=progress))

    rear_row: dict[str, object] = {"loss": 0.5}
    front = saying(piece("a", 2, 0, NAMES[:5]), {"of": "another stage", "and": "longer"})
    rear = saying(piece("a", 2, 1, NAMES[5:]), rear_row)
    for inventory in ([[front, rear]], [[rear], [front]]):
        state = newest_state(inventory)
        assert state is not None
        assert state.progress.row == rear_row


def test_the_work_is_shared_out_and_new_nodes_help() -> None:
    """One node has all, 31 have nothing: as in a tree, nobody sends more than a few times."""
    inventory = [everything("b", 3), *([] for _ in range(31))]
    plan = plan_restore(inventory, 2, Topology(Shape((1,)), (1,) * 32), [NAMES])
    assert plan is not None
    sent: Counter[int] = Counter()
    for transfer in plan.transfers:
        sent[transfer.source] += sum(SIZES[name] for name in transfer.names)
    assert max(sent.values()) <= 5 * sum(SIZES.values())


def test_one_new_node_gets_its_part_from_all_that_have_it() -> None:
    inventory = [everything("b", 3) for _ in range(3)]
    plan = plan_restore([*inventory, []], 2, Topology(Shape((1,)), (1,) * 4), [NAMES])
    assert plan is not None
    sent = [sum(SIZES[n] for n in t.names) for t in plan.transfers]
    assert sorted(t.source for t in plan.transfers) == [0, 1, 2]
    assert max(sent) - min(sent) <= max(SIZES.values())


def test_a_thousand_nodes_are_planned_in_time() -> None:
    topology = Topology(Shape((1, 1)), (2,) * 1000)
    inventory = [everything("a", 2) if node % 2 else [] for node in range(1000)]
    plan = plan_restore(inventory, -1, topology, [NAMES[:6], NAMES[6:]])
    assert plan is not None
    targets = [t.target for t in plan.transfers]
    assert targets == sorted(targets)
    assert set(targets) == set(range(0, 1000, 2))
    assert list(accumulate(targets, max)) == targets
