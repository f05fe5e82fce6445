"""Options that change what a step does, through real bundles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.reference import train_unsplit
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_parity import (
    CONFIG,
    NUM_STEPS,
    assert_close,
    assert_keeps_single_precision_and_learns,
    bundle_run,
    final_tensors,
    losses_of,
    run_state,
)

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


def test_adamw_label_smoothing_and_a_step_schedule_train_like_the_unsplit_model(
    tmp_path: Path,
) -> None:
    config = replace(
        CONFIG,
        shape=Shape((1, 1)),
        optimizer="adamw",
        lr=0.01,
        weight_decay=0.1,
        label_smoothing=0.1,
        lr_schedule="step",
        lr_step_epochs=1,
        warmup_epochs=0.5,
    )
    state = bundle_run(config, (4,), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-10)


def test_bfloat16_keeps_its_parameters_in_single_precision_and_learns(tmp_path: Path) -> None:
    assert_keeps_single_precision_and_learns("bfloat16", tmp_path)


COMPILED = """
from torch import nn


class Net(nn.Module):
    '''Each pass of a stage is one kernel that a C++ compiler makes, which takes it seconds.'''

    def __init__(self, num_outputs):
        super().__init__()
        self.flat, self.first, self.norm = nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8)
        self.second = nn.Linear(8, num_outputs)

    def forward(self, x):
        return self.second(self.norm(self.first(self.flat(x))).tanh())


def build(num_outputs):
    return Net(num_outputs)
"""


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_stages_train_like_the_unsplit_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More threads are processes that import torch.
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    path = tmp_path / "model.py"
    path.write_text(COMPILED)
    config = replace(
        CONFIG, model=f"{path}:build", shape=Shape((1, 1)), compile="default", max_steps=2
    )
    config = replace(config, timeout_s=240.0)
    state = bundle_run(config, (2,), tmp_path, limit_s=250.0)
    assert_close(state, train_unsplit(config, 2).state, 1e-9)


def test_a_deterministic_run_gives_the_same_bits_twice_and_measures_nothing(
    tmp_path: Path,
) -> None:
    config = replace(
        CONFIG,
        shape=Shape((1, 1)),
        precision="float32",
        max_steps=0,
        epochs=2,
        sync="auto",
        share="measured",
        deterministic=True,
    )
    states = [bundle_run(config, (4, 2), tmp_path / name) for name in ("one", "two")]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert losses_of(tmp_path / "one") == losses_of(tmp_path / "two")
    assert not RunPaths(tmp_path / "one" / "run").sync_choice(0).exists()
    bundle_run(replace(config, deterministic=False, epochs=1), (4, 2), tmp_path / "else")
    assert RunPaths(tmp_path / "else" / "run").sync_choice(0).exists()


def test_norms_and_biases_without_weight_decay_train_like_the_unsplit_model(
    tmp_path: Path,
) -> None:
    config = replace(
        CONFIG,
        shape=Shape((1, 1)),
        weight_decay=0.1,
        norm_weight_decay=0.0,
        bias_weight_decay=0.02,
    )
    bundle_run(replace(config, max_steps=2), (4,), tmp_path)
    state = bundle_run(replace(config, shape=Shape((1, 1, 1))), (3,), tmp_path)
    reference = train_unsplit(config, NUM_STEPS)
    assert_close(state, reference.state, 1e-10)
    plain = train_unsplit(replace(config, norm_weight_decay=-1.0), NUM_STEPS)
    assert not torch.equal(plain.state["norm1.weight"], reference.state["norm1.weight"])


IN_ORDER = '''
import torch
from torch import nn


class Watch(nn.Module):
    """Images come in the order that the parameters have; before a cut gradients, too."""

    def __init__(self, is_before_cut=False):
        super().__init__()
        self.is_before_cut = is_before_cut
        self.order = nn.Parameter(torch.zeros(2, 2, 2, 2))

    def check(self, tensor):
        is_last = tensor.is_contiguous(memory_format=torch.channels_last)
        assert is_last == self.order.is_contiguous(memory_format=torch.channels_last)
        if is_last:
            open(__file__ + ".seen", "a").close()

    def forward(self, x):
        self.check(x)
        if self.is_before_cut and x.requires_grad:
            x.register_hook(self.check)
        return x + self.order.sum()


def build(num_outputs):
    head = nn.Sequential(nn.Flatten(), nn.Linear(384, num_outputs))
    return [
        nn.Sequential(Watch(), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), Watch(True)),
        nn.Sequential(Watch(), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1), Watch(), head),
    ]
'''


def test_channels_last_is_kept_across_a_cut_and_back_and_learns_the_same(tmp_path: Path) -> None:
    states = {}
    for choice in ("contiguous", "channels_last"):
        path = tmp_path / f"{choice}.py"
        path.write_text(IN_ORDER)
        config = replace(CONFIG, model=f"{path}:build", cut=(), memory_format=choice)
        for shape in ((1,), (1, 1), (2, 1)):
            nodes = (2 * sum(shape),)
            folder = tmp_path / f"{choice}-{len(shape)}-{sum(shape)}"
            states[choice, shape] = run_state(replace(config, shape=Shape(shape)), nodes, folder)
        assert Path(f"{path}.seen").exists() == (choice == "channels_last")
    for found in states.values():
        assert_close(found, states["contiguous", (1,)], 1e-10)


def test_channels_last_is_refused_where_there_are_no_images(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    config = TrainConfig(
        data=str(text),
        recipe="characters",
        shape=Shape((1,)),
        memory_format="channels_last",
        run_dir=str(tmp_path / "run"),
    )
    found = outcomes((1,), trains(config), tmp_path, timeout_s=60)
    assert "no parameter of the model has four dimensions" in found[0]


COUNTED = """
import torch
from torch import nn


class Counted(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            with open(f"{__file__}.{self.number}", "a") as file:
                file.write(".")
        return torch.tanh_(x)


def build(num_outputs):
    def block(number, width):
        first = nn.Conv2d(width, 6, 3, padding=1)
        return nn.Sequential(first, nn.BatchNorm2d(6), nn.Dropout(0.2), Counted(number))

    head = nn.Sequential(nn.Flatten(), nn.Linear(384, num_outputs))
    return [block(0, 3), nn.Sequential(Counted(1), block(2, 6)), nn.Sequential(block(3, 6), head)]
"""


def test_recomputed_stages_train_to_the_same_bits(tmp_path: Path) -> None:
    states, calls = {}, {}
    for choice in ("none", "all", "1"):
        path = tmp_path / f"{choice}.py"
        path.write_text(COUNTED)
        config = replace(
            CONFIG, model=f"{path}:build", cut=(), recompute=choice, max_steps=2, schedule="1f1b"
        )
        shape = Shape((1, 1, 1))
        states[choice] = run_state(replace(config, shape=shape), (3,), tmp_path / choice)
        calls[choice] = [Path(f"{path}.{n}").stat().st_size for n in range(4)]
    for found in states.values():
        assert all(torch.equal(found[name], value) for name, value in states["none"].items())
    # The last stage has one micro-batch in flight, and does not do what saves nothing. In 2 steps
    # there are 12 of them; the check of the cut at the start is the same in all runs.
    again = {c: [n - m for n, m in zip(calls[c], calls["none"], strict=True)] for c in calls}
    assert again == {"none": [0, 0, 0, 0], "all": [12, 12, 12, 0], "1": [0, 12, 12, 0]}


def test_auxiliary_heads_cross_a_cut_in_training_only(tmp_path: Path) -> None:
    config = TrainConfig(
        data="synthetic",
        model="googlenet",
        cut=("inception5a",),
        shape=Shape((1, 1)),
        synthetic_samples=10,
        image_size=64,
        augment="none",
        batch_size=4,
        microbatch_size=2,
        epochs=1,
        timeout_s=60.0,
        run_dir=str(tmp_path / "run"),
    )
    run_ranks((2,), trains(config), tmp_path, timeout_s=120)
    assert len(losses_of(tmp_path)) == 3
    assert [row["kind"] for row in history(tmp_path)].count("eval") == 1


def test_the_characters_recipe_learns_the_same_through_any_bundle(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    config = TrainConfig(
        data=str(text),
        recipe="characters",
        shape=Shape((1,)),
        batch_size=8,
        microbatch_size=2,
        epochs=2,
        optimizer="adamw",
        lr=0.003,
        precision="float64",
        timeout_s=30.0,
        share="equal",
    )
    curves, states = [], []
    for number, change in enumerate(
        [
            {"shape": Shape((1,))},
            {"shape": Shape((1, 1)), "cut": ("block3",)},
            {"shape": Shape((2, 1)), "cut": ("block3",), "schedule": "zero-bubble"},
            {"shape": Shape((1, 1)), "chunks": 3},
        ]
    ):
        folder = tmp_path / str(number)
        run = replace(config, **change, run_dir=str(folder / "run"))
        run_ranks((run.shape.size,), trains(run), folder)
        curves.append(losses_of(folder))
        states.append(final_tensors(folder))
    assert curves[0][-1] < 0.9 * curves[0][0]
    for curve, state in zip(curves, states, strict=True):
        assert curve == pytest.approx(curves[0], rel=1e-9)
        assert state.keys() == states[0].keys()


def test_a_batch_norm_that_gets_one_value_says_which_option_helps(tmp_path: Path) -> None:
    # 25 samples: the last micro-batch of the epoch has one; 1x1 pixels are left of 2x2.
    config = replace(
        CONFIG,
        shape=Shape((1, 1)),
        cut=("second",),
        synthetic_samples=25,
        image_size=2,
        run_dir=str(tmp_path / "run"),
        timeout_s=10.0,
    )
    found = outcomes((2,), trains(config), tmp_path, 60)
    assert "ConfigError: batch norm 'norm1' of 6 channels gets one value of each" in found[0]
    assert "--microbatch-size" in found[0]


def test_the_measured_shares_use_every_sample_once(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1, 1)), share="measured", max_steps=0, epochs=3)
    bundle_run(config, (4,), tmp_path)
    rows = [row for row in history(tmp_path) if row["kind"] == "step"]
    assert sum(row["samples"] for row in rows) == 3 * CONFIG.synthetic_samples
    assert losses_of(tmp_path) == pytest.approx(
        train_unsplit(config, 3 * NUM_STEPS).losses, rel=1e-9
    )


def test_the_history_has_the_time_of_every_phase(tmp_path: Path) -> None:
    bundle_run(replace(CONFIG, shape=Shape((1, 1)), validate=True), (2, 2), tmp_path)
    epoch = next(row for row in history(tmp_path) if row["kind"] == "epoch")
    for phase in ("data", "forward", "backward", "send", "receive", "optimizer"):
        assert epoch["phases"][phase] > 0, phase
    for phase in ("exchange",):
        assert epoch["phases"][phase] > 0, phase
    summary = json.loads(RunPaths(tmp_path / "run").summary.read_text())
    assert summary["samples_per_s"] > 0
    assert summary["phases"]["validate"] > 0
    assert summary["phases"]["checkpoint"] > 0
