"""A run whose exchange is hidden behind the next forward comes to the same bits, step by step."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.overlap.behind import Behind
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.sync import bucket
from bundlerun.workers.sync.legs import Leg
from bundlerun.workers.train import train
from tests.ranks import tied_model
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.rank.test_stopping import Told
from tests.ranks.training.test_parity import CONFIG, CUTS, final_tensors, losses_of

FOLDER = Path(__file__).parents[1]
PLAIN = replace(
    CONFIG,
    precision="float32",
    clip_norm=0.0,
    verify_replicas=False,
    weight_decay=0.01,
    norm_weight_decay=0.0,
    momentum=0.9,
    lr=0.05,
    snapshot_steps=1,
    snapshot_copies=1,
    epochs=20,
    max_steps=12,
)
ODD = f"{FOLDER / 'odd_reads.py'}:build"
TIED = f"{FOLDER / 'tied_model.py'}:build"
STATEFUL = f"{FOLDER / 'stateful_model.py'}:build"
KINDS: dict[str, Any] = {
    "recipe": str(FOLDER / "kinds_recipe.py"),
    "model": PLAIN.model,
    "cut": (),
    "batch_size": 4,
    "microbatch_size": 1,
}


class Case(NamedTuple):
    """One way to train."""

    shape: tuple[int, ...]
    nodes: tuple[int, ...]
    changes: dict[str, Any] = {}  # noqa: RUF012 (read only)


CASES = [
    Case((1,), (2, 1), {"max_steps": 50, "model_ema": True, "optimizer": "adamw", "lr": 0.01}),
    Case((1,), (2, 2), {"max_steps": 50, "model": ODD, "cut": (), "sync": "sharded"}),
    Case((1, 1), (4, 2), {"max_steps": 50, "verify_steps": 3, "model_ema": True, "validate": True}),
    Case((1,), (1, 1, 1), {"exchange_dtype": "int8", "checkpoint_steps": 3}),
    Case((1, 1), (2, 2), {"sync": "flat", "schedule": "gpipe", "optimizer": "rmsprop"}),
    Case((2, 1), (3, 3), {"schedule": "zero-bubble", "exchange_dtype": "bfloat16"}),
    Case((1, 1, 1), (3, 3), {"share": "measured", "deterministic": True}),
    Case((1, 1), (2, 2), {"model": TIED, "cut": tied_model.CUTS[2], "sync": "sharded"}),
    Case((1, 1), (2, 2), {
        "model": TIED, "cut": tied_model.CUTS[4], "chunks": 2, "schedule": "interleaved",
    }),
    Case((1, 1), (2, 2), {"cutter": "replay", "recompute": "0"}),
    Case((1,), (3,), {"microbatch_size": 12}),
    Case((1,), (1, 1), {**KINDS, "data": "weights", "exchange_dtype": "bfloat16"}),
    Case((1, 1), (2, 2), {**KINDS, "data": "complex", "cut": ("turn",), "precision": "float64"}),
    Case((1,), (3,), {**KINDS, "data": "sparse"}),
    Case((1,), (2,), {"model": STATEFUL, "cut": (), "image_size": 4}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as small as these would have all their gradients in the first bucket."""
    monkeypatch.setattr(bucket, "MOST_WIDENED", 40)


def config_of(case: Case) -> TrainConfig:
    shape = Shape(case.shape)
    config = replace(PLAIN, shape=shape, cut=CUTS[shape.num_stages])
    return replace(config, **case.changes)


def run(
    config: TrainConfig,
    nodes: tuple[int, ...],
    folder: Path,
    *,
    delay_s: float = 0.0,
    mistake: Any = None,
) -> tuple[dict[int, str], dict[str, int]]:
    """How the ranks ended that did not end well; how often one of them left a step, and waited.

    Args:
        delay_s: of each bucket in each leg.
        mistake: takes the place of the wait.
    """
    config = replace(config, run_dir=str(folder / "run"))
    counts = {"left": 0, "waited": 0}

    def main(env: RankEnv, store: Store) -> None:
        leave, wait, finish = Behind.leave, Behind._wait_for, Leg._finish_oldest

        def left(self: Behind, *args: Any) -> None:
            counts["left"] += 1
            leave(self, *args)

        def waited(self: Behind, parameter: object) -> None:
            counts["waited"] += id(parameter) in self._awaited
            (mistake or wait)(self, parameter)

        def late(self: Leg) -> None:
            time.sleep(delay_s)
            finish(self)

        Behind.leave, Behind._wait_for = left, waited  # type: ignore[method-assign]
        Leg._finish_oldest = late  # type: ignore[method-assign]
        train(config, env, store)
        (folder / f"counts-{env.rank}.json").write_text(json.dumps(counts))

    failures = outcomes(nodes, main, folder, 120)
    for path in folder.glob("counts-*.json"):
        counts = {name: max(counts[name], n) for name, n in json.loads(path.read_text()).items()}
    return failures, counts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_way_to_train_comes_to_the_same_bits(case: Case, tmp_path: Path) -> None:
    config = config_of(case)
    assert not run(config, case.nodes, tmp_path / "plain")[0]
    config = replace(config, overlap_forward=True)
    failures, counts = run(config, case.nodes, tmp_path / "behind", delay_s=0.002)
    assert not failures
    wanted, found = final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "behind")
    assert found.keys() == wanted.keys()
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not different
    assert losses_of(tmp_path / "behind") == losses_of(tmp_path / "plain")
    if config.model == STATEFUL:
        assert not counts["left"]
    else:
        assert counts["left"] > config.max_steps // 3
        assert counts["waited"] >= counts["left"] // 2 > 0


def test_a_forward_that_does_not_wait_is_noticed(tmp_path: Path) -> None:
    config = config_of(CASES[0])
    config = replace(config, max_steps=12)
    assert not run(config, (2, 1), tmp_path / "plain")[0]

    def mistake(*_: object) -> None:
        pass

    config = replace(config, overlap_forward=True)
    failures, _ = run(config, (2, 1), tmp_path / "behind", delay_s=0.002, mistake=mistake)
    # Autograd sees that what it has saved was written since; else the numbers are others.
    if not failures:
        wanted, found = final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "behind")
        assert any(not torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("case", "then"),
    [
        (Case((1, 1), (2, 2)), (2, 2)),
        # What rounding has kept back comes out of the checkpoint, for unused parameters, too.
        (Case((1,), (2, 1), {"model": ODD, "cut": (), "exchange_dtype": "int8"}), (1, 1)),
    ],
    ids=str,
)
def test_a_run_that_is_told_to_stop_meanwhile_stops_at_once_and_goes_on_to_the_same_bits(
    case: Case, then: tuple[int, ...], tmp_path: Path
) -> None:
    config = replace(config_of(case), synthetic_samples=12 * 24)

    def stopped(folder: Path, overlap_forward: bool) -> dict[str, Tensor]:
        own = replace(config, overlap_forward=overlap_forward, run_dir=str(folder / "run"))

        class ToldLate(Told):
            from_look = 6

        def main(env: RankEnv, store: Store) -> None:
            assert train(own, env, store, ToldLate(is_the_one=env.rank == 1)) == EXIT_RESUMABLE

        run_ranks(case.nodes, main, folder)
        outcome = read_outcome(RunPaths(folder / "run"))
        assert outcome is not None
        assert outcome.step == 6
        failures, counts = run(own, then, folder, delay_s=0.002)
        assert not failures
        assert bool(counts["left"]) == overlap_forward
        return final_tensors(folder)

    wanted, found = stopped(tmp_path / "plain", False), stopped(tmp_path / "behind", True)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert losses_of(tmp_path / "behind") == losses_of(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_norm": 1.0}, "--clip-norm"),
        ({"on_nan": "skip"}, "--on-nan skip"),
        ({"verify_replicas": True}, "--verify-replicas"),
    ],
)
def test_what_needs_all_sums_first_goes_on_without_and_says_so(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = config_of(Case((1,), (2,), {**changes, "max_steps": 4, "overlap_forward": True}))
    log = tmp_path / "log.txt"

    def main(env: RankEnv, store: Store) -> None:
        logging.basicConfig(level=logging.INFO, filename=log, force=True)
        train(config, env, store)

    config = replace(config, run_dir=str(tmp_path / "run"))
    run_ranks((2,), main, tmp_path)
    (line,) = [one for one in log.read_text().splitlines() if "--overlap-forward" in one]
    assert words in line
