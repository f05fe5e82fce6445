"""What several stages share is kept once, and comes to every stage of whatever cut goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bundlerun.launcher.cli import main
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.sync import bucket
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state import killed_runs
from tests.ranks.state.killed_runs import (
    KILLED_AT,
    NUM_STEPS,
    SNAPSHOTS,
    Nodes,
    Widths,
    assert_like_one_that_was_not,
    killed_run,
    restarts,
)
from tests.ranks.tied_model import CUTS, Tied
from tests.ranks.training.test_parity import (
    assert_close,
    final_tensors,
    losses_of,
    run_state,
)
from tests.ranks.training.test_shared import TIED

pytestmark = pytest.mark.usefixtures("memory_that_shows")

OPTIONS: dict[str, Any] = {
    "model": TIED.model, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1,
}  # fmt: skip
KEPT = replace(SNAPSHOTS, **OPTIONS)


def shaped(shape: Widths, folder: Path, **changes: Any) -> Any:
    return killed_runs.shaped(shape, folder, cut=CUTS[len(shape)], **OPTIONS, **changes)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(KEPT, NUM_STEPS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # The middle stage holds nothing but `mix` and `kept`, which it then owns.
        (((1, 1), (2, 2)), ((1, 1, 1), (3,))),
        (((1, 1, 1), (1, 2)), ((2, 1), (3, 3))),
        (((1, 1, 1), (3,)), ((1,), (1, 1))),
    ],
    ids=str,
)
def test_another_cut_goes_on_from_memory(
    before: tuple[Widths, Nodes],
    after: tuple[Widths, Nodes],
    reference: Reference,
    tmp_path: Path,
) -> None:
    killed_run(shaped(before[0], tmp_path), before[1], tmp_path, "optimizer", 0)
    state = run_state(shaped(after[0], tmp_path), after[1], tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)


def test_another_cut_goes_on_from_disk_and_the_model_itself_loads_it(
    reference: Reference, tmp_path: Path
) -> None:
    for shape, nodes, steps in (((1, 1, 1), (3,), 2), ((1,), (1,), 4), ((1, 1), (2,), 0)):
        config = shaped(shape, tmp_path, max_steps=steps or NUM_STEPS, snapshot="off")
        state = run_state(config, nodes, tmp_path)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)
    output = tmp_path / "model.safetensors"
    assert main(["export", str(tmp_path / "run"), "-o", str(output)]) == 0
    model = Tied(10).double()
    model.load_state_dict(load_file(output), strict=True)
    assert_close(dict(model.state_dict()), reference.state, 1e-10)


def test_a_checkpoint_has_each_name_of_the_model_and_one_state_of_the_optimizer(
    tmp_path: Path,
) -> None:
    run_state(shaped((1, 1, 1), tmp_path, max_steps=1), (3,), tmp_path)
    names = list(final_tensors(tmp_path))
    model = Tied(10)
    assert sorted(n for n in names if n.startswith("model.")) == sorted(
        f"model.{name}" for name in model.state_dict()
    )
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(n for n in names if n.endswith(".exp_avg")) == sorted(
        f"optimizer.{name}.exp_avg" for name in trained
    )
    parts = survey(RunPaths(tmp_path / "run")).found[0].weight_map
    owned = {n: parts[f"model.{n}"] for n in ("decode.weight", "mix.weight", "kept")}
    assert len(set(owned.values())) == 2, "of the first stage, and `kept` of the second"


def test_the_same_nodes_go_on_bit_equal_rounding_included(
    shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "MOST_WIDENED", 20)  # what is longer is rounded between nodes
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "shm").symlink_to(shared_memory)
    changes = {"precision": "float32", "exchange_dtype": "bfloat16", "clip_norm": 0.0}
    wanted = run_state(shaped((1, 1), whole, **changes), (2, 2), whole)
    config = shaped((1, 1), killed, **changes)
    killed_run(config, (2, 2), killed, "optimizer", 1)
    found = run_state(config, (2, 2), killed)
    assert restarts(killed) == [(KILLED_AT, "snapshot")]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert losses_of(killed) == losses_of(whole)
