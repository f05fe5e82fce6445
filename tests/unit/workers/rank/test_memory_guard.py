from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, ConfigError, NodeError
from bundlerun.launcher.ranks.budget import FINAL_CODES
from bundlerun.launcher.run_folder.microbatch import keep_samples, kept_samples
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank.memory_guard import MemoryGuard, MemoryUse, why_out_of_memory

GIB = 1 << 30
CONFIG = TrainConfig(data="synthetic", batch_size=96, microbatch_size=24)
GPU = torch.device("cuda", 0)


def own_fault(monkeypatch: pytest.MonkeyPatch, others: int = 0) -> None:
    """A GPU of 80 GiB that this process fills."""
    own = 78 * GIB - others
    found = door.Memory(peak=own, own=own, free=GIB, capacity=80 * GIB)
    monkeypatch.setattr(door, "memory", lambda device: found)


def test_the_first_step_without_memory_ends_with_peak_capacity_and_the_way_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_fault(monkeypatch)
    with (
        pytest.raises(ConfigError, match=r"78\.0 GiB of 80\.0 .* 24 .* --microbatch-size 12"),
        MemoryGuard(CONFIG, GPU),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_size_that_nobody_asked_for_is_halved_for_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own_fault(monkeypatch)
    config = TrainConfig(data="x", batch_size=256, microbatch_size=128, run_dir=str(tmp_path))
    paths = RunPaths(tmp_path)
    keep_samples(paths, 256, 128)

    def raised(config: TrainConfig, *, may_shrink: bool) -> BaseException:
        guard = MemoryGuard(config, GPU, may_shrink=may_shrink)
        with pytest.raises(BundleError) as found, guard:
            raise torch.OutOfMemoryError
        return found.value

    asked_for = raised(config, may_shrink=False)
    assert isinstance(asked_for, ConfigError)
    assert kept_samples(str(paths.root), 256) == 128

    first = raised(config, may_shrink=True)
    assert type(first) is BundleError
    assert first.verdict not in FINAL_CODES
    assert "of 128 samples, the default; from the next start on they have 64" in str(first)
    assert kept_samples(str(paths.root), 256) == 64
    raised(replace(config, microbatch_size=64), may_shrink=True)
    assert kept_samples(str(paths.root), 256) == 32
    last = raised(replace(config, microbatch_size=32), may_shrink=True)
    assert isinstance(last, ConfigError)
    assert "use --microbatch-size 16" in str(last)
    assert kept_samples(str(paths.root), 256) == 32


def test_the_size_of_a_run_that_has_come_further_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own_fault(monkeypatch)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 3}\n')
    config = TrainConfig(data="x", batch_size=256, microbatch_size=128, run_dir=str(tmp_path))
    with pytest.raises(ConfigError), MemoryGuard(config, GPU, may_shrink=True):
        raise torch.OutOfMemoryError
    assert kept_samples(RunPaths(tmp_path), 256) == 0


def test_later_steps_and_others_errors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def raised(error: Exception, num_finished: int = 0) -> type[BaseException]:
        guard = MemoryGuard(CONFIG, GPU, lambda: num_finished)
        with pytest.raises(Exception) as found, guard:  # noqa: PT011
            raise error
        return found.type

    own_fault(monkeypatch)
    assert raised(torch.OutOfMemoryError()) is ConfigError
    assert raised(torch.OutOfMemoryError(), num_finished=1) is torch.OutOfMemoryError
    assert raised(KeyError()) is KeyError
    # A rank that was killed a moment ago still holds its memory: the next start may go well.
    own_fault(monkeypatch, others=70 * GIB)
    assert raised(torch.OutOfMemoryError()) is NodeError


def test_a_gpu_that_another_process_fills_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_fault(monkeypatch, others=70 * GIB)
    text = (
        r"other processes hold 71\.0 GiB of 80\.0, .* 8\.0 at its peak; nvidia-smi .* CUDA_VISIBLE"
    )
    with pytest.raises(NodeError, match=text) as found, MemoryGuard(CONFIG, GPU):
        raise torch.OutOfMemoryError
    assert "\n" not in str(found.value)


def test_ranks_that_share_a_gpu_are_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    own_fault(monkeypatch, others=40 * GIB)
    text = (
        r"38\.0 GiB of 80\.0 at its peak, and other processes hold 41\.0 GiB, as ranks share this "
        r"GPU, with micro-batches of 24 samples; use --microbatch-size 12, .*--nproc-per-node"
    )
    guard = MemoryGuard(CONFIG, GPU, shares_gpu=True)
    with pytest.raises(ConfigError, match=text), guard:
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("samples", "way"), [(32, "--microbatch-size 16"), (9, "--microbatch-size 3"), (1, "--shape")]
)
def test_half_the_microbatch_is_recommended_while_there_is_one(samples: int, way: str) -> None:
    config = TrainConfig(data="synthetic", batch_size=samples, microbatch_size=samples)
    use = MemoryUse(peak=1, capacity=1, others=0)
    assert way in why_out_of_memory(config, use)
    assert way in why_out_of_memory(config, None)
