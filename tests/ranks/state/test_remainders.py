"""What rounding has kept back is not lost: not where nodes and shape change, nor on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.nn import Parameter

from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.run_folder.checkpoints import REMAINDER
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.run.kept_back import NamedRemainders
from bundlerun.workers.snapshot.slot import read_piece
from bundlerun.workers.sync import bucket
from bundlerun.workers.sync.gradient_sync import GradientSync
from bundlerun.workers.sync.short.owed import Owed
from tests.ranks.harness import run_ranks
from tests.ranks.state.killed_runs import (
    KILLED_AT,
    Nodes,
    Widths,
    killed_run,
    lose,
    restarts,
    shaped,
)
from tests.ranks.sync.test_sync import make_sync
from tests.ranks.training.test_parity import final_tensors, run_state

pytestmark = pytest.mark.usefixtures("memory_that_shows")
FLOAT32 = {"precision": "float32", "exchange_dtype": "int4", "clip_norm": 0.0}
Sums = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _short_first_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "MOST_WIDENED", 20)  # what is longer is rounded between nodes


def added(parts: Iterable[tuple[str, int, Tensor]]) -> Sums:
    """The sums of parts of parameters: name, begin, numbers; each as one long row."""
    found: Sums = defaultdict(lambda: torch.zeros(4096, dtype=torch.float64))
    for name, begin, numbers in parts:
        found[name][begin : begin + numbers.numel()] += numbers.view(-1).double()
    return dict(found)


def assert_same(found: Sums, wanted: Sums) -> None:
    assert found.keys() == wanted.keys()
    assert wanted
    for name, numbers in wanted.items():
        assert numbers.any()
        torch.testing.assert_close(found[name], numbers, rtol=1e-6, atol=1e-9)


def parts_of(kept: NamedRemainders) -> list[tuple[str, int, Tensor]]:
    """What a rank is to make up for: taken up leg by leg, or owed."""
    found: list[Owed] = []
    for sums in kept._sync.kept_back:
        found += [part for owed in sums.debts._of.values() for part in owed]
        for rounding in sums._roundings.values():
            for within, parts in rounding._taken.items():
                for parameter, (first, last) in within.places.items():
                    found += [
                        Owed(parameter, begin - first, t)
                        for begin, t in parts
                        if first <= begin < last
                    ]
    return [(kept._names[part.parameter], part.begin, part.numbers) for part in found]


def noting(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Sums]:
    """Lets ranks note what they take up; gives what reads that."""
    folder.mkdir()
    honest: Callable[..., None] = getattr(NamedRemainders, name)

    def noted(self: NamedRemainders, *rest: Any) -> None:
        honest(self, *rest)
        torch.save(parts_of(self), folder / f"{self._session.place.rank}.pt")

    monkeypatch.setattr(NamedRemainders, name, noted)
    return lambda: added(part for path in folder.iterdir() for part in torch.load(path))


def in_memory(shm: Path) -> Sums:
    """What all ranks of the killed round have kept, in the memory of all nodes."""
    pieces = [read_piece(path) for path in shm.glob("*/*feedback*")]
    found: Mapping[str, Mapping[str, Tensor]] = {
        piece.label.situation: {name: piece.tensor(name) for name in piece.layout.specs}
        for piece in pieces
        if piece is not None and piece.label.step == KILLED_AT
    }
    names = (
        (text.split("/", 3), tensor) for each in found.values() for text, tensor in each.items()
    )
    return added((name, int(begin), tensor) for (_, _, begin, name), tensor in names)


MOVES: list[tuple[tuple[Widths, Nodes], tuple[Widths, Nodes]]] = [
    (((1, 1), (2, 2)), ((1, 1), (2, 2))),  # each goes on with its own
    (((1, 1), (4, 2)), ((1, 1), (2, 4))),
    (((1, 1), (1, 1, 1, 1)), ((1, 1, 1), (1, 1, 1))),  # one replica: there is no exchange any more
    (((1, 1), (1, 1, 1, 1)), ((1, 1), (1, 1, 1))),  # all nodes have other stages
    (((1,), (2, 1)), ((2, 1), (3, 3))),
    (((1, 1), (1, 1, 1, 1)), ((1, 1), (1, 1, 1, 1))),
]


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        *((before, after, "int4") for before, after in MOVES),
        (*MOVES[1], "topk:8"),
        (*MOVES[1], "powersgd:1"),
    ],
    ids=str,
)
def test_all_that_memory_has_is_made_up_for_once(
    before: tuple[Widths, Nodes],
    after: tuple[Widths, Nodes],
    how: str,
    shared_memory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = (
        FLOAT32 if ":" not in how else FLOAT32 | {"exchange": how, "exchange_dtype": "float32"}
    )
    killed_run(shaped(before[0], tmp_path, **changes), before[1], tmp_path, "optimizer", 0)
    lose(shared_memory, range(len(after[1]), len(before[1])))
    wanted = in_memory(shared_memory)
    found = noting(tmp_path / "noted", "load_feedback", monkeypatch)
    # It dies again before it has a snapshot of its own: there are copies then of what has moved.
    config = shaped(after[0], tmp_path, **changes)
    killed_run(config, after[1], tmp_path, "forward", 0, KILLED_AT)
    assert_same(found(), wanted)
    run_state(config, after[1], tmp_path)
    assert_same(found(), wanted)
    assert set(restarts(tmp_path)) == {(KILLED_AT, "snapshot")}


@pytest.mark.parametrize("then", [((1, 1), (2, 2)), ((1, 1, 1), (3,)), ((2, 1), (3, 3))], ids=str)
def test_a_checkpoint_has_the_sum_and_one_rank_takes_it_up(
    then: tuple[Widths, Nodes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(shaped((1, 1), tmp_path, **FLOAT32), max_steps=3)
    run_state(config, (2, 2), tmp_path)
    saved = {
        name.removeprefix(REMAINDER): tensor
        for name, tensor in final_tensors(tmp_path).items()
        if name.startswith(REMAINDER)
    }
    wanted = added((name, 0, tensor.contiguous()) for name, tensor in saved.items())
    found = noting(tmp_path / "noted", "load", monkeypatch)
    run_state(replace(shaped(then[0], tmp_path, **FLOAT32), max_steps=4), then[1], tmp_path)
    assert_same(found(), wanted)


FORMS = [
    *(ExchangeForm(dtype) for dtype in ("bfloat16", "int8", "int4")),
    ExchangeForm(top=8),
    ExchangeForm(rank=3),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("nodes", [(2, 1), (2, 2, 2)], ids=str)
def test_what_was_sent_and_what_is_kept_is_the_exact_sum(
    nodes: Nodes, form: ExchangeForm, tmp_path: Path
) -> None:
    topology, num_steps = Topology(Shape((1,)), nodes), 3

    def main(env: RankEnv, store: Store) -> None:
        for scheme in ("local-master", *(() if form.rank else ("sharded",))):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.Linear(50, 9))
            prefix = PrefixStore(scheme, store)
            sync = make_sync(model, env, prefix, topology, scheme=scheme, form=form)
            parameters = [*model.parameters()]
            sent = [torch.zeros_like(p) for p in parameters]
            exact = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
            for number in range(num_steps):
                torch.manual_seed(number)
                every = [[torch.randn_like(p) for p in parameters] for _ in range(sum(nodes))]
                do_step(sync, parameters, every[env.rank])
                for total, parameter in zip(sent, parameters, strict=True):
                    assert parameter.grad is not None
                    total += parameter.grad
                for of_rank in every:
                    for wanted, own in zip(exact, of_rank, strict=True):
                        wanted += own
            kept = sync.kept_back.sums()
            assert kept
            for total, parameter, wanted in zip(sent, parameters, exact, strict=True):
                found = total.double() + kept.get(parameter, torch.zeros(()))
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            # A step whose sums travel as they are takes all along.
            do_step(sync, parameters, every[env.rank], is_exact=True)
            assert not sync.kept_back.sums()
            for parameter, wanted in zip(
                parameters, map(sum, zip(*every, strict=True)), strict=True
            ):
                assert parameter.grad is not None
                found = parameter.grad - kept.get(parameter, torch.zeros(()))
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            # Another rank makes up for it: nothing else is in its gradient.
            if env.rank == 1:
                sync.kept_back.debts.add([Owed(p, 0, t.view(-1)) for p, t in kept.items()])
            do_step(sync, parameters, [torch.zeros_like(p) for p in parameters])
            again = sync.kept_back.sums()
            for parameter, tensor in kept.items():
                assert parameter.grad is not None
                found = parameter.grad + again.get(parameter, torch.zeros(()))
                torch.testing.assert_close(found, tensor, rtol=1e-5, atol=1e-6)
            sync.close()

    run_ranks(nodes, main, tmp_path)


def do_step(
    sync: GradientSync, parameters: list[Parameter], own: list[Tensor], *, is_exact: bool = False
) -> None:
    """One whose gradients on this rank are `own`."""
    sync.start_step(is_exact=is_exact)
    sync.arm(0)
    torch.autograd.backward([(p * t).sum() for p, t in zip(parameters, own, strict=True)])
    sync.finish()
    sync.read()
