from pathlib import Path

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.train_argv import read_train_argv


def test_the_command_line_of_a_configuration_gives_it_back() -> None:
    config = TrainConfig(
        data="a b",
        shape=Shape((4, 2)),
        cut=("layer3.10",),
        batch_size=48,
        lr=0.25,
        validate=False,
        affinity=False,
        loader_workers=0,
        compile="default",
    )
    assert read_train_argv(config.to_argv(), {}).value == config


def test_an_option_beats_the_environment_and_that_beats_the_toml_file(tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text('data = "here"\nlr = 3.0\nepochs = 3\nbatch-size = 96\nshape = [2, 1]\n')
    environ = {"BUNDLERUN_LR": "2", "BUNDLERUN_EPOCHS": "2", "BUNDLERUN_VALIDATE": "no"}
    config = read_train_argv(["--config", str(toml), "--lr=1"], environ).value
    assert (config.lr, config.epochs, config.batch_size) == (1.0, 2, 96)
    assert (config.data, config.shape, config.validate) == ("here", Shape((2, 1)), False)


def test_trackers_may_be_typed_in_one_option_or_in_several() -> None:
    argv = ["x", "--tracker=wandb,mlflow", "--tracker", "mine", "--tensorboard"]
    config = read_train_argv(argv, {}).value
    assert config.tracker == ("wandb", "mlflow", "mine")
    assert config.trackers == ("tensorboard", "wandb", "mlflow", "mine")
    assert read_train_argv(config.to_argv(), {}).value == config
    assert read_train_argv(["x"], {"BUNDLERUN_TRACKER": "wandb"}).value.trackers == ("wandb",)


def test_underscores_are_read_as_torchrun_reads_them() -> None:
    assert read_train_argv(["--batch_size=64", "--no_validate", "x_y"], {}).value == TrainConfig(
        data="x_y", batch_size=64, validate=False
    )


@pytest.mark.parametrize(
    ("words", "mode", "tf32"),
    [
        ("--compile synthetic --tf32", "default", "on"),
        ("--compile=max-autotune synthetic --no-tf32", "max-autotune", "off"),
        ("--tf32=auto --compile --no-compile synthetic", "off", "auto"),
        ("--no_compile synthetic --tf32=true", "off", "on"),
    ],
)
def test_words_may_stand_without_a_value_and_leave_data_alone(
    words: str, mode: str, tf32: str
) -> None:
    config = read_train_argv(words.split(), {"BUNDLERUN_COMPILE": "1"}).value
    assert (config.data, config.compile, config.tf32) == ("synthetic", mode, tf32)


def test_words_without_a_value_are_truths_elsewhere(tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text("compile = true\ntf32 = false\n")
    config = read_train_argv(["--config", str(toml), "x"], {}).value
    assert (config.compile, config.tf32) == ("default", "off")
    config = read_train_argv(["x"], {"BUNDLERUN_COMPILE": "Yes", "BUNDLERUN_TF32": "on"}).value
    assert (config.compile, config.tf32) == ("default", "on")


def test_data_must_be_given() -> None:
    with pytest.raises(ConfigError, match="DATA is missing"):
        read_train_argv([], {})


def test_an_unknown_toml_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text("bach-size = 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'bach-size' in .*nearest: batch-size"):
        read_train_argv(["--config", str(toml), "synthetic"], {})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"a = ", "is not TOML"), (b"\xff\xfe", "is not TOML")],
)
def test_a_toml_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    toml = tmp_path / "c.toml"
    if content is not None:
        toml.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_train_argv(["--config", str(toml), "synthetic"], {})


def test_an_environment_value_is_named_by_its_variable() -> None:
    with pytest.raises(ConfigError, match="BUNDLERUN_VALIDATE 'perhaps' is not true or false"):
        read_train_argv(["synthetic"], {"BUNDLERUN_VALIDATE": "perhaps"})


def test_an_unknown_option_ends_with_code_2() -> None:
    with pytest.raises(SystemExit) as stop:
        read_train_argv(["--bach-size=3", "synthetic"], {})
    assert stop.value.code == 2
