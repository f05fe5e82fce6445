"""What a standby does before it is ready, and what it leaves as it was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.device.accelerator import Memory
from bundlerun.workers.run import warming
from bundlerun.workers.run.warming import (
    Warming,
    is_users,
    samples_of,
    stage_of,
    step_of,
    why_no_room,
)

CPU = torch.device("cpu")


def config_of(folder: Path, **options: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "data": "synthetic",
            "model": "shufflenet_v2_x0_5",
            "image_size": 32,
            "synthetic_samples": 8,
            "batch_size": 4,
            "microbatch_size": 2,
            "shape": Shape((1, 1)),
            "run_dir": str(folder),
            **options,
        }
    )


def told(folder: Path) -> dict[str, Any]:
    (line,) = RunPaths(folder).node_events("n").read_text().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("chunks", "stage"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_the_step_is_one_of_the_own_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int, stage: int
) -> None:
    steps: list[dict[str, bool]] = []
    found: list[nn.Module] = []
    cut = warming.cut_model

    def cut_and_keep(*args: Any, **options: Any) -> Any:
        made = cut(*args, **options)
        found.extend(made.stages)
        return made

    def optimizer(parameters: list[tuple[str, nn.Parameter]]) -> Any:
        return SimpleNamespace(
            step=lambda: steps.append({name: p.grad is not None for name, p in parameters})
        )

    recipe = warming.load_recipe(config_of(tmp_path))
    monkeypatch.setattr(warming, "cut_model", cut_and_keep)
    monkeypatch.setattr(recipe, "optimizer", optimizer)
    monkeypatch.setattr(warming, "load_recipe", lambda config: recipe)
    step_of(config_of(tmp_path, chunks=chunks), stage, CPU)
    own = {name for name, _ in found[stage].named_parameters()}
    assert steps == [dict.fromkeys(own, True)]
    others = (p for number, each in enumerate(found) if number != stage for p in each.parameters())
    assert all(p.grad is None for p in others)


def test_a_standby_is_ready_and_leaves_random_numbers_and_cores_as_they_were(
    tmp_path: Path, one_thread: None
) -> None:
    before = torch.get_rng_state(), os.sched_getaffinity(0)
    ready = Warming(config_of(tmp_path), 0, 2, "n").run(os.getpid)
    assert ready
    event = told(tmp_path)
    assert (event["event"], event["local_rank"]) == ("standby ready", 0)
    assert event["has_stepped"]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert os.sched_getaffinity(0) == before[1]


def test_a_standby_without_memory_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with caplog.at_level(logging.WARNING):
        ready = Warming(config_of(tmp_path), 1, 2, "n").run(os.getpid)
    assert not ready
    (record,) = caplog.records
    assert "no standby for local rank 1: it needs" in record.getMessage()
    assert told(tmp_path)["event"] == "standby missing"


def test_a_step_that_fails_is_the_ranks_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("such a model")

    monkeypatch.setattr(warming, "step_of", fail)
    assert Warming(config_of(tmp_path), 0, 2, "n").run(os.getpid)
    assert not told(tmp_path)["has_stepped"]


def test_the_users_own_files_are_not_run(tmp_path: Path) -> None:
    mine = [{"recipe": "mine.py"}, {"model": "mine.py:build"}, {}]
    assert [is_users(config_of(tmp_path, **options)) for options in mine] == [True, True, False]


def test_stages_go_round_the_ranks_of_a_node() -> None:
    config = TrainConfig(data="d", shape=Shape((2, 1)))
    assert [stage_of(config, rank) for rank in range(6)] == [0, 0, 1, 0, 0, 1]


def test_a_gpu_that_is_half_full_has_room_for_two_samples_only() -> None:
    def memory(free: int) -> Memory:
        return Memory(peak=0, own=0, free=free, capacity=80)

    found = [samples_of(32, each) for each in (None, memory(40), memory(39))]
    assert found == [32, 32, 2]
    assert samples_of(0, None) == 2


def test_room_is_told_with_both_numbers() -> None:
    assert why_no_room(10, 10) == ""
    text = why_no_room(2_000_000_000, 500_000_000, "GPU memory")
    assert text == "it needs 2.0 GB of GPU memory, and 0.5 GB are free"
