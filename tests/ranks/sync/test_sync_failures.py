"""A rank that dies or freezes in any leg of a sync ends all others in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import Store

from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.node_memory import NodeMemory
from bundlerun.workers.sync import exchange, node_legs
from tests.ranks.harness import outcomes
from tests.ranks.sync.test_sync import Awkward, make_sync, no_memory, step

LIMIT_S = 3.0
NUM_STEPS = 1000
Places = list[tuple[str, type, str, tuple[int, ...], int]]
# scheme, where in the code, nodes, which rank
PLACES: Places = [
    ("local-master", node_legs._SharedCollect, "begin", (2, 2), 1),
    ("local-master", node_legs._SharedCollect, "_add_up", (2, 2), 2),
    ("local-master", exchange.Swap, "begin", (2, 2), 0),
    ("local-master", exchange.AllReduce, "begin", (2, 1, 1), 2),
    ("rounded", exchange.Scatter, "begin", (2, 1, 1), 3),
    ("rounded", exchange.Gather, "begin", (2, 1, 1), 0),
    ("local-master", node_legs._SharedDistribute, "begin", (2, 2), 0),
    ("local-master", node_legs._SharedDistribute, "_copy_back", (2, 2), 3),
    ("sharded", node_legs._SharedCollect, "_add_up", (2, 2), 1),
    ("sharded", exchange.Swap, "begin", (2, 2), 3),
    ("sharded", node_legs._SharedDistribute, "_copy_back", (3, 2), 2),
    ("flat", exchange.AllReduce, "begin", (2, 2), 2),
    ("collectives", node_legs._PerShard, "begin", (2, 2), 1),
]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def inject(owner: type, name: str, what: Callable[[], None]) -> None:
    """Lets `what` happen where this process calls a method for the 40th time."""
    honest = getattr(owner, name)
    calls = iter(range(1 << 30))

    def tampered(self: object, bucket: object) -> object:
        if next(calls) == 40:
            what()
        return honest(self, bucket)

    setattr(owner, name, tampered)


@pytest.mark.parametrize(
    ("scheme", "owner", "name", "nodes", "rank"),
    PLACES,
    ids=[f"{scheme}-{owner.__name__.strip('_')}-{rank}" for scheme, owner, _, _, rank in PLACES],
)
def test_a_rank_that_is_killed_in_a_leg_ends_all_others(
    scheme: str,
    owner: type,
    name: str,
    nodes: tuple[int, ...],
    rank: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert stopped_ranks(scheme, owner, name, nodes, rank, die, tmp_path, monkeypatch) == list(
        range(sum(nodes))
    )


def test_a_rank_that_freezes_in_a_leg_ends_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze() -> None:
        """Stops this process; a child ends it when the others have ended, or never will."""
        frozen = os.getpid()
        if os.fork() == 0:
            deadline = time.monotonic() + 40
            while len(list(tmp_path.glob("round-*/rank*.txt"))) < 3:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            else:
                (tmp_path / "thawed").touch()
            os.kill(frozen, signal.SIGKILL)
            os._exit(0)
        os.kill(frozen, signal.SIGSTOP)

    swap = ("local-master", exchange.Swap, "begin", (2, 2), 0)
    assert stopped_ranks(*swap, freeze, tmp_path, monkeypatch) == [0, 1, 2, 3]
    assert (tmp_path / "thawed").exists()


def stopped_ranks(
    scheme: str,
    owner: type,
    name: str,
    nodes: tuple[int, ...],
    rank: int,
    what: Callable[[], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[int]:
    """The ranks that did not train to the end; raises AssertionError if one hangs."""
    topology = Topology(Shape((1,)), nodes)

    def main(env: RankEnv, store: Store) -> None:
        way = scheme
        if scheme == "collectives":
            monkeypatch.setattr(NodeMemory, "connect", no_memory)
        if scheme in ("collectives", "rounded"):
            way = "local-master"
        form = ExchangeForm("bfloat16") if scheme == "rounded" else EXACT
        if env.rank == rank:
            inject(owner, name, what)
        model = Awkward()
        sync = make_sync(
            model, env, store, topology, bucket_bytes=1, scheme=way, form=form, timeout_s=LIMIT_S
        )
        for _ in range(NUM_STEPS):
            step(sync, model, env.rank, 1, 0)

    found = outcomes(nodes, main, folder, 50)
    # Else a mistake of the test would end them all, too.
    assert not [text for text in found.values() if "TypeError" in text]
    return sorted(found)
