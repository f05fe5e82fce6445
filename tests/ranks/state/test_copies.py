"""Copies of stages on other nodes: no room for them, one machine for all, a share of the link."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import Store

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.events import Events, read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import status_of
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.snapshot import restore, room
from bundlerun.workers.snapshot.checksum import copy_with_checksum
from bundlerun.workers.snapshot.link_share import PART_BYTES, LinkShare
from bundlerun.workers.snapshot.passing import receive_piece, send_piece
from bundlerun.workers.snapshot.piece import Label, Layout, Spec
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.snapshot.room import SnapshotFolder
from bundlerun.workers.snapshot.slot import Slot, read_piece
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state.killed_runs import (
    KILLED_AT,
    NUM_STEPS,
    SNAPSHOTS,
    Nodes,
    Widths,
    assert_like_one_that_was_not,
    killed_run,
    lose,
    restarts,
    shaped,
)
from tests.ranks.training.test_parity import run_state

pytestmark = pytest.mark.usefixtures("memory_that_shows")
TWO_SLOTS = 2


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(SNAPSHOTS, NUM_STEPS)


@pytest.fixture(autouse=True)
def event_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of these tests have no agent, and write what happens all the same."""

    def life() -> Liveness:
        name = str(os.getpid())
        events = Events(RunPaths(tmp_path / "run").node_events(name), name)
        return Liveness(None, events, 0, is_launched=False)

    monkeypatch.setattr(Liveness, "none", life)


def short_of(folder: Path) -> list[str]:
    """What `bundlerun status` says of copies, while the run goes on."""
    events = read_events(RunPaths(folder / "run").events)
    rows = [{"time": 1.0, "kind": "step", "step": 0, "loss": 1.0}]
    return sorted(status_of(rows, events, None, now=2.0).short)


def test_without_room_for_a_copy_training_goes_on_and_says_so(
    shared_memory: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_room(folder: SnapshotFolder, num_bytes: int) -> bool:
        """For what a node runs itself, and nothing else."""
        return len(list(folder.paths.folder.glob("*.piece"))) < TWO_SLOTS

    monkeypatch.setattr(room, "has_room", has_room)
    config = shaped((1, 1), tmp_path, snapshot_dir=str(shared_memory))
    killed_run(config, (1, 1), tmp_path, "optimizer", 0)
    no_room = [text for text in short_of(tmp_path) if "has no room" in text]
    assert no_room == [
        f"node node{there} has no room for a copy of stage {stage}: if node node{stage} is lost, "
        "a restart continues from the newest checkpoint"
        for there, stage in ((0, 1), (1, 0))
    ]
    state = run_state(config, (1, 1), tmp_path)
    # Its own snapshots were never short of that room.
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)
    assert list(shared_memory.iterdir()) == []


@pytest.mark.parametrize(
    ("machines", "stages"),
    [(("a", "a"), "stages 0, 1 (nodes node0, node1)"), (("a", "b"), "")],
)
def test_copies_on_one_machine_are_told_as_that(
    machines: tuple[str, str],
    stages: str,
    shared_memory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = shaped((1, 1), tmp_path)

    def main(env: RankEnv, store: Store) -> None:
        monkeypatch.setattr(
            "bundlerun.workers.rank.arrival.session.boot_id", lambda: machines[env.node]
        )
        train(config, env, store)

    run_ranks((1, 1), main, tmp_path)
    told = short_of(tmp_path)
    assert len(told) == bool(stages)
    assert all(stages in text and "one machine" in text for text in told)


# --- bytes


@contextmanager
def counting(folder: Path) -> Iterator[None]:
    """Lets ranks write down what a restore sends, and what each node gets."""
    honest_send, honest_receive = restore.send_data, Restore._receive

    def send(group: Group, to: int, data: torch.Tensor, data_sum: bytes) -> None:
        (folder / f"sent-{os.getpid()}-{data.data_ptr()}").write_text(str(data.numel()))
        honest_send(group, to, data, data_sum)

    def receive(self: Restore, group: Group, layout: Layout, label: Label, number: int) -> None:
        told = {"node": self._node, "names": list(layout.specs), "bytes": layout.num_bytes}
        (folder / f"got-{self._node}-{number}").write_text(json.dumps(told))
        honest_receive(self, group, layout, label, number)

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "send_data", send)
        patch.setattr(Restore, "_receive", receive)
        yield


def held_at(shared_memory: Path, step: int) -> dict[int, set[str]]:
    """The names of a step's state in the memory of each node, whoever ran them."""
    held: dict[int, set[str]] = {}
    for path in shared_memory.glob("*/*.piece"):
        piece = read_piece(path)
        if piece is not None and piece.label.step == step:
            held.setdefault(int(path.parent.name[-1]), set()).update(piece.layout.specs)
    return held


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (((1, 1, 1), (1, 1, 1)), ((1, 1), (1, 1)), (2,)),  # a node leaves
        (((1, 1), (1, 1)), ((1, 1, 1), (1, 1, 1)), ()),  # one comes
        (((1, 1), (1, 1)), ((1, 1), (1, 1)), (1,)),  # another one in the place of a lost one
    ],
    ids=["leaves", "comes", "is replaced"],
)
def test_only_what_changed_hands_moves(
    before: tuple[Widths, Nodes],
    after: tuple[Widths, Nodes],
    lost: tuple[int, ...],
    shared_memory: Path,
    reference: Reference,
    tmp_path: Path,
) -> None:
    killed_run(shaped(before[0], tmp_path), before[1], tmp_path, "optimizer", 0)
    lose(shared_memory, lost)
    held = held_at(shared_memory, KILLED_AT)
    counts = tmp_path / "counts"
    with counting(counts):
        state = run_state(shaped(after[0], tmp_path), after[1], tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)
    got = [json.loads(path.read_text()) for path in counts.glob("got-*")]
    assert got, "somebody lacks something"
    again = [(one["node"], held.get(one["node"], set()) & set(one["names"])) for one in got]
    assert not any(names for _, names in again), "as owner or as buddy it has these"
    sent = sum(int(path.read_text()) for path in counts.glob("sent-*"))
    assert sent == sum(one["bytes"] for one in got)


def test_a_copy_takes_its_share_of_the_link_and_comes_whole(tmp_path: Path) -> None:
    share, num_parts = 0.2, 5
    layout = Layout.of({"a": Spec("uint8", (num_parts * PART_BYTES - 100,))})
    progress = Progress(step=3, epoch=0, step_in_epoch=3, samples_seen=3)
    label = Label(step=3, token="t", stage=0, num_stages=1, num_names=1, progress=progress)
    ways: dict[int, Callable[[Group], Any]] = {}

    def send(group: Group) -> None:
        pauses: list[float] = []
        link = LinkShare(share, sleep=pauses.append)
        sent: list[tuple[int, float]] = []
        honest = link.pause_s

        def pause_s(num_bytes: int, took_s: float) -> float:
            sent.append((num_bytes, took_s))
            return honest(num_bytes, took_s)

        link.pause_s = pause_s  # type: ignore[method-assign]
        slot = Slot(tmp_path / "a", layout)
        slot.open()
        data = torch.arange(layout.num_bytes, dtype=torch.int64).to(torch.uint8)
        slot.seal(label, copy_with_checksum(slot.bytes, [(0, data)]))
        assert send_piece(group, 1, slot, link)
        # By what it has measured itself: bytes over time of sending and pausing.
        assert len(sent) == num_parts
        assert sum(num for num, _ in sent) == layout.num_bytes
        whole_s = sum(took for _, took in sent) + sum(pauses)
        assert layout.num_bytes / whole_s <= share * link.bytes_per_s * 1.0001
        assert link.paused_s == pytest.approx(sum(pauses))

    def receive(group: Group) -> None:
        kept = receive_piece(group, 0, lambda _, layout: Slot(tmp_path / "b", layout))
        assert kept == label

    def refuse(group: Group) -> None:
        assert receive_piece(group, 0, lambda *_: None) is None

    ways = {0: send, 1: receive}

    def main(env: RankEnv, store: Store) -> None:
        ways[env.rank](
            Group(
                Network(store=store, rank=env.rank, backend="gloo", timeout_s=20),
                "buddy",
                (0, 1),
                "gloo",
            )
        )

    run_ranks((1, 1), main, tmp_path)
    a, b = (read_piece(tmp_path / name) for name in "ab")
    assert a is not None
    assert b is not None
    assert torch.equal(a.data, b.data)

    def send_in_vain(group: Group) -> None:
        slot = Slot(tmp_path / "c", layout)
        slot.open()
        slot.seal(label, copy_with_checksum(slot.bytes, []))
        assert not send_piece(group, 1, slot, LinkShare(share, sleep=lambda _: None))

    ways = {0: send_in_vain, 1: refuse}
    run_ranks((1, 1), main, tmp_path)
