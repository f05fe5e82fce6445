"""The loss scale moves as torch's own, and comes through what keeps it."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import Progress, manifest_text
from bundlerun.workers.optim import loss_scale
from bundlerun.workers.optim.loss_scale import GROWTH_STEPS, INITIAL, LossScale


def after(scale: LossScale, is_good: bool) -> float:
    if is_good:
        scale.is_good()
    else:
        scale.is_over()
    return scale.value


class TorchsOwn:
    """What `torch.amp.GradScaler.update` does."""

    def __init__(self) -> None:
        scaler = torch.amp.GradScaler("cpu")
        self._value = torch.tensor(scaler.get_scale())
        self._tracker = torch.zeros((), dtype=torch.int32)
        self._numbers = (
            scaler.get_growth_factor(),
            scaler.get_backoff_factor(),
            scaler.get_growth_interval(),
        )

    def after(self, is_good: bool) -> float:
        found_inf = torch.tensor(0.0 if is_good else 1.0)
        torch._amp_update_scale_(self._value, self._tracker, found_inf, *self._numbers)
        return self._value.item()


@given(st.lists(st.tuples(st.integers(0, 2 * GROWTH_STEPS), st.integers(0, 3)), max_size=3))
def test_it_moves_as_torchs_own(runs: list[tuple[int, int]]) -> None:
    own, torchs = LossScale(is_dynamic=True), TorchsOwn()
    for num_good, num_over in runs:
        for is_good in [True] * num_good + [False] * num_over:
            assert after(own, is_good) == torchs.after(is_good)


def test_it_stays_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 1)
    scale = LossScale(is_dynamic=True)
    for _ in range(200):
        scale.is_good()
    assert torch.tensor(scale.value).isfinite()
    scale.is_over()
    assert scale.value == 2.0**126


def test_only_float16_has_one() -> None:
    loss = torch.tensor(3.0)
    for precision in ("float32", "bfloat16", "float64"):
        scale = LossScale.of(TrainConfig(data="x", precision=precision))
        assert scale.scaled(loss) is loss
        assert after(scale, is_good=False) == after(scale, is_good=True) == 1.0
        scale.load(8.0, 3)
        assert (scale.value, scale.kept) == (1.0, (0.0, 0))
    scale = LossScale.of(TrainConfig(data="x", precision="float16"))
    assert scale.scaled(loss).item() == 3.0 * INITIAL


def test_a_loss_in_float16_is_scaled_in_float32() -> None:
    scaled = LossScale(is_dynamic=True).scaled(torch.tensor(3.0, dtype=torch.float16))
    assert (scaled.dtype, scaled.item()) == (torch.float32, 3.0 * INITIAL)


def test_it_goes_on_where_it_was_and_begins_anew_where_nothing_was_kept() -> None:
    scale = LossScale(is_dynamic=True)
    for is_good in [False] + [True] * (GROWTH_STEPS - 1):
        after(scale, is_good)
    assert scale.kept == (INITIAL / 2, GROWTH_STEPS - 1)
    other = LossScale(is_dynamic=True)
    other.load(*scale.kept)
    assert after(other, is_good=True) == INITIAL
    other.load(0.0, 0)
    assert other.kept == (INITIAL, 0)


def test_a_manifest_names_it_in_float16_only() -> None:
    progress = Progress(step=1, epoch=0, step_in_epoch=1, samples_seen=8)
    assert "loss_scale" not in json.loads(manifest_text(progress, [], {}, {}))
    scaled = Progress(
        step=1, epoch=0, step_in_epoch=1, samples_seen=8, loss_scale=4.0, loss_scale_steps=7
    )
    found = json.loads(manifest_text(scaled, [], {}, {}))
    assert found["loss_scale"] == {"value": 4.0, "num_steps": 7}
