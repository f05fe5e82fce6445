"""Checkpoints written by some stages and read by others, damaged ones, and how many stay."""

import errno
import hashlib
import json
import logging
import os
import pickle
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.run_folder.checkpoints import MANIFEST, best_of
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.state.checkpoint import Checkpoints
from bundlerun.workers.state.named import load_state_tensors, stage_names, state_tensors
from tests.unit.workers.state.checkpoint_tools import flip, newest_step, write

# --- split, optimizer ---------------------------------------------------------------------------


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 16), nn.Linear(16, 4)
    )


def stages_of(model: nn.Sequential, cuts: Sequence[int]) -> list[nn.Module]:
    """Stages whose parameter names are those of `model`."""
    edges = [0, *cuts, len(model)]
    stages: list[nn.Module] = []
    for begin, end in pairwise(edges):
        stage = nn.Module()
        for index in range(begin, end):
            stage.add_module(str(index), model[index])
        stages.append(stage)
    return stages


def train(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def adamw(stages: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(stage.parameters(), lr=0.01) for stage in stages]


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (1, 3)], ids=str)
def test_another_split_resumes_bit_equal(checkpoints: Checkpoints, cuts: tuple[int, ...]) -> None:
    model = make_model()
    stages = stages_of(model, (2,))
    optimizers = adamw(stages)
    train(model, optimizers, range(3))
    write(checkpoints, 3, [state_tensors(s, o) for s, o in zip(stages, optimizers, strict=True)])
    train(model, optimizers, range(3, 6))

    resumed = make_model()
    others = stages_of(resumed, cuts)
    fresh = adamw(others)
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    for stage, optimizer in zip(others, fresh, strict=True):
        names = stage_names(stage, checkpoint.weight_map)
        load_state_tensors(stage, optimizer, checkpoints.load(checkpoint, names))
    train(resumed, fresh, range(3, 6))

    assert all(torch.equal(resumed.state_dict()[n], t) for n, t in model.state_dict().items())


def test_the_manifest_says_everything(paths: RunPaths) -> None:
    config = TrainConfig(data="synthetic", cut=("layer3",))
    folder = write(Checkpoints(paths, keep=1, config=config), 12, top1=0.5, top5=float("nan"))

    manifest = json.loads((folder / MANIFEST).read_text(), parse_constant=pytest.fail)
    assert folder == paths.checkpoint(12)
    assert (manifest["format"], manifest["step"], manifest["samples_seen"]) == (1, 12, 768)
    assert manifest["metrics"] == {"top1": 0.5, "top5": "nan"}
    assert manifest["config"]["cut"] == ["layer3"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["weight_map"]["model.rear"] == "stage-1.safetensors"
    checkpoint = Checkpoints(paths, keep=1).newest()
    assert checkpoint is not None
    assert checkpoint.progress.epoch == 1
    assert list(checkpoint.progress.metrics) == ["top1", "top5"]


def test_only_files_with_the_asked_tensors_are_read(checkpoints: Checkpoints) -> None:
    folder = write(checkpoints, 1)
    checkpoint = checkpoints.candidates()[0]
    (folder / "stage-0.safetensors").unlink()

    found = checkpoints.load(checkpoint, ["model.rear"])

    assert list(found) == ["model.rear"]
    assert checkpoint.files_of(["model.rear", "model.count"]) == ["stage-1.safetensors"]
    with pytest.raises(CheckpointError, match=r"no 'model.raer'.*nearest: model.rear"):
        checkpoints.load(checkpoint, ["model.raer"])
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoints.load(checkpoint, ["model.front"])


def test_there_is_none_before_the_first(checkpoints: Checkpoints) -> None:
    checkpoints.sweep()

    assert checkpoints.newest() is None
    assert checkpoints.candidates() == []


# --- bad bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["stage-0.safetensors", "stage-1.safetensors", MANIFEST])
def test_no_truncation_and_no_flipped_bit_is_taken_for_good(
    checkpoints: Checkpoints, file: str
) -> None:
    write(checkpoints, 1)
    path = write(checkpoints, 2) / file
    content = path.read_bytes()
    logging.disable(logging.WARNING)  # a thousand of them, over all files
    choices = random.Random(0)
    places = [0, len(content) - 1, *(choices.randrange(len(content)) for _ in range(170))]
    for place in places:
        for damaged in (content[:place], flip(content, place)):
            path.write_bytes(damaged)
            assert newest_step(checkpoints) == 1, place
    path.write_bytes(content)
    logging.disable(logging.NOTSET)
    assert newest_step(checkpoints) == 2


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "stage-1.safetensors").unlink(), "stage-1.safetensors is missing"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.json cannot be read"),
        (lambda f: os.truncate(f / "stage-0.safetensors", 9), "has 9 bytes, not"),
    ],
    ids=["file", "manifest", "size"],
)
def test_an_incomplete_checkpoint_is_named(
    checkpoints: Checkpoints,
    damage: Callable[[Path], None],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(checkpoints, 1)
    damage(write(checkpoints, 2))

    assert newest_step(checkpoints) == 1
    assert "step-000000002" in caplog.text
    assert says in caplog.text
    assert "using 'step-000000001' instead" in caplog.text


def test_wrong_bytes_are_named_and_so_is_what_is_used_instead(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    write(checkpoints, 1)
    path = write(checkpoints, 2) / "stage-0.safetensors"
    path.write_bytes(flip(path.read_bytes(), 150))

    assert newest_step(checkpoints) == 1
    assert "'step-000000002' is damaged: stage-0.safetensors does not match" in caplog.text
    assert "using 'step-000000001' instead" in caplog.text


def test_ranks_may_agree_on_the_damage(checkpoints: Checkpoints) -> None:
    write(checkpoints, 1)
    write(checkpoints, 2)

    surveyed = pickle.loads(pickle.dumps(checkpoints.survey()))
    write(checkpoints, 3)

    found = checkpoints.newest(lambda c: "seen by another rank" if c.step == 2 else None, surveyed)

    assert found is not None
    assert found.step == 1


def test_when_all_are_damaged_there_is_none_and_that_is_said(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(checkpoints, 1) / "stage-0.safetensors"
    os.truncate(path, 9)

    assert checkpoints.newest() is None
    assert "there is no good one" in caplog.text


# --- pruning ------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(checkpoints: Checkpoints) -> None:
    for step, top1 in ((10, 0.6), (20, 0.9), (30, 0.7), (40, 0.8)):
        write(checkpoints, step, top1=top1, loss=-top1)
    write(checkpoints, 45)

    assert checkpoints.prune() == [30, 10]
    assert [c.step for c in checkpoints.candidates()] == [45, 40, 20]


def test_of_equal_ones_the_newest_is_best_and_nan_never_is(checkpoints: Checkpoints) -> None:
    for step, top1 in ((1, 0.5), (2, 0.5), (3, float("nan"))):
        write(checkpoints, step, top1=top1)

    best = best_of(checkpoints.candidates())

    assert best is not None
    assert best.step == 2


def test_damaged_ones_that_were_passed_over_do_not_push_out_the_good(paths: RunPaths) -> None:
    checkpoints = Checkpoints(paths, keep=1)
    write(checkpoints, 50)
    path = write(checkpoints, 100) / "stage-0.safetensors"
    path.write_bytes(flip(path.read_bytes(), 200))
    resumed = Checkpoints(paths, keep=1)
    assert newest_step(resumed) == 50

    write(resumed, 60)
    resumed.prune()

    assert newest_step(resumed) == 60
    write(resumed, 100)
    assert newest_step(resumed) == 100


def test_an_old_checkpoint_that_cannot_be_removed_is_only_a_warning(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        write(checkpoints, step)

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)

    assert checkpoints.prune() == []
    assert "cannot remove the old checkpoint 'step-000000001'" in caplog.text


def test_a_checkpoint_of_before_is_judged_by_its_first_metric(checkpoints: Checkpoints) -> None:
    folder = write(checkpoints, 1, top1=0.25, top5=0.5)
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256"], body["score"]
    body["sha256"] = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(body))
    assert [c.progress.score for c in checkpoints.candidates()] == [0.25]
