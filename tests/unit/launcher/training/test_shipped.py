"""Files of options that come with bundlerun are taken by name, by every command alike."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import flag_of, options_of, read_toml
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.launcher.training.shipped import config_path, shipped_names

PAGE = Path(__file__).parents[4] / "docs" / "references.md"


@pytest.mark.parametrize("name", shipped_names())
def test_a_name_stands_for_a_file_of_options(name: str) -> None:
    resolved = read_train_argv(["--config", name, "synthetic"], {})
    keys = {key.replace("-", "_") for key in read_toml(config_path(name))}
    assert keys <= {field.name for field in options_of(TrainConfig)}
    assert {field for field, source in resolved.sources.items() if source == name} == keys
    assert resolved.value.batch_size // resolved.value.microbatch_size == 8  # their GPUs
    assert f"`{name}`" in PAGE.read_text()


def test_a_file_holds_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = shipped_names()[0]
    Path(name).write_text("epochs = 3\n")
    assert read_train_argv(["--config", name, "synthetic"], {}).value.epochs == 3
    assert config_path(f".{os.sep}{name}").read_text() == "epochs = 3\n"


def test_another_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        config_path("resnet50")
    assert "is no file, and none of those that come with bundlerun: resnet50-v2" in str(error.value)
    # What looks like a file is read as one.
    with pytest.raises(ConfigError, match=r"cannot read --config 'no\.toml'"):
        read_toml(config_path("no.toml"))


THEIRS = re.findall(
    r"[\w-]+",
    """
    data-path model device batch-size epochs workers opt lr momentum weight-decay norm-weight-decay
    bias-weight-decay transformer-embedding-decay label-smoothing mixup-alpha cutmix-alpha
    lr-scheduler lr-warmup-epochs lr-warmup-method lr-warmup-decay lr-step-size lr-gamma lr-min
    print-freq output-dir resume start-epoch cache-dataset sync-bn test-only auto-augment
    ra-magnitude augmix-severity random-erase amp world-size dist-url model-ema model-ema-steps
    model-ema-decay use-deterministic-algorithms interpolation val-resize-size val-crop-size
    train-crop-size clip-grad-norm ra-sampler ra-reps weights backend use-v2
    """,
)
"""The options of references/classification/train.py."""


def test_each_option_of_the_reference_has_its_place() -> None:
    table = PAGE.read_text().partition("\n## Their option, ours\n")[2]
    rows = re.findall(r"^\| (`--.*) \| (.+) \|$", table, re.MULTILINE)
    assert {name for theirs, _ in rows for name in re.findall(r"--([\w-]+)", theirs)} == set(THEIRS)
    ours = {name for _, here in rows for name in re.findall(r"--([\w-]+)", here)}
    known = {
        flag_of(field.name)[2:] for cls in (TrainConfig, LaunchConfig) for field in options_of(cls)
    }
    assert ours <= known
