import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.config import TrainConfig, parse_train_argv
from bundlerun.launcher.errors import ConfigError


def test_the_command_line_of_a_configuration_gives_it_back() -> None:
    config = TrainConfig(
        data="a b",
        shape=(4, 2),
        cut=("layer3.10",),
        batch_size=48,
        lr=0.25,
        validate=False,
        affinity=False,
        loader_workers=0,
        compile=True,
    )
    assert parse_train_argv(config.to_argv(), {}) == config


def test_an_option_beats_the_environment_and_that_beats_the_toml_file(tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text('data = "here"\nlr = 3.0\nepochs = 3\nbatch-size = 96\nshape = [2, 1]\n')
    environ = {"BUNDLERUN_LR": "2", "BUNDLERUN_EPOCHS": "2", "BUNDLERUN_VALIDATE": "no"}
    config = parse_train_argv(["--config", str(toml), "--lr=1"], environ)
    assert (config.lr, config.epochs, config.batch_size) == (1.0, 2, 96)
    assert (config.data, config.shape, config.validate) == ("here", (2, 1), False)


def test_underscores_are_read_as_torchrun_reads_them() -> None:
    assert parse_train_argv(["--batch_size=64", "--no_validate", "x_y"], {}) == TrainConfig(
        data="x_y", batch_size=64, validate=False
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--shape=1,a", "--shape '1,a' is not whole numbers separated by commas"),
        ("--shape=", "--shape '' is not whole numbers"),
        ("--shape=1,0", "--shape 1,0 has a stage without a device"),
        ("--shape=-1", "--shape -1 has a stage without a device"),
        ("--batch-size=0", "--batch-size 0 must be 1 or more"),
        ("--batch-size=1.5", "--batch-size '1.5' is not a whole number"),
        ("--lr=nan", "--lr nan must be 0 or more, and finite"),
        ("--lr=inf", "--lr inf must be 0 or more, and finite"),
        ("--lr=fast", "--lr 'fast' is not a number"),
        ("--bucket-mb=nan", "--bucket-mb nan must be 0 or more, and finite"),
        ("--sync=flat --exchange-dtype=bfloat16", "--sync flat has no step of its own for that"),
        ("--sync=ring", "--sync 'ring' is not one of: auto, local-master, sharded, flat"),
        ("--timeout-s=0", "--timeout-s 0.0 must be above 0, and finite"),
        ("--snapshot=no", "--snapshot 'no' is not one of: on, off"),
        ("--snapshot-steps=-1", "--snapshot-steps -1 must be 0 or more"),
        ("--label-smoothing=1.5", "--label-smoothing 1.5 must be 1 or less"),
        ("--threads=-1", "--threads -1 must be 0 or more"),
        ("--loader-workers=-2", "--loader-workers -2 must be -1 or more"),
        ("--optimizer=lion", "--optimizer 'lion' is not one of: sgd, adamw"),
        ("--cut=a,b", "--cut a,b makes 3 stages, --shape 1,1 has 2"),
        ("--cut=3", "--cut 3 makes 3 equal parts, --shape 1,1 has 2 stages"),
        ("--chunks=0", "--chunks 0 must be 1 or more"),
        ("--schedule=2f2b", "--schedule '2f2b' is not one of: auto, gpipe, 1f1b"),
        ("--schedule=cosine", "--schedule 'cosine' is not one of: auto, gpipe, 1f1b"),
        ("--schedule=interleaved", "--schedule interleaved needs --chunks 2 or more"),
        ("--chunks=2 --schedule=gpipe", "--schedule gpipe has no order for --chunks 2"),
        ("--chunks=2 --shape=3", "--chunks 2 of one stage follow each other on the same device"),
        ("--schedule=zero-bubble --compile", "--schedule zero-bubble takes each backward apart"),
        ("--chunks=2 --cut=a", "--cut a makes 2 chunks, --shape 1,1 with --chunks 2 has 4"),
        ("--chunks=2 --cut=2", "--shape 1,1 with --chunks 2 has 4 chunks; give the same number"),
    ],
)
def test_a_wrong_value_is_named_with_its_option(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_train_argv([*word.split(" "), "synthetic"], {})
    assert message in str(error.value)


@pytest.mark.parametrize("words", ["--chunks=2", "--chunks=2 --schedule=interleaved --cut=4"])
def test_chunks_are_interleaved(words: str) -> None:
    assert parse_train_argv([*words.split(), "synthetic"], {}).num_chunks == 4


def test_a_batch_that_is_no_multiple_of_the_microbatch_names_the_sizes_that_do() -> None:
    with pytest.raises(ConfigError, match=r"not a multiple .* \[1, 2, 5, 10\]"):
        TrainConfig(batch_size=10, microbatch_size=4)


def test_data_must_be_given() -> None:
    with pytest.raises(ConfigError, match="DATA is missing"):
        parse_train_argv([], {})


def test_an_unknown_toml_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text("bach-size = 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'bach-size' in .*nearest: batch-size"):
        parse_train_argv(["--config", str(toml), "synthetic"], {})


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
        parse_train_argv(["--config", str(toml), "synthetic"], {})


def test_an_environment_value_is_named_by_its_variable() -> None:
    with pytest.raises(ConfigError, match="BUNDLERUN_VALIDATE 'perhaps' is not true or false"):
        parse_train_argv(["synthetic"], {"BUNDLERUN_VALIDATE": "perhaps"})


def test_an_unknown_option_ends_with_code_2() -> None:
    with pytest.raises(SystemExit) as stop:
        parse_train_argv(["--bach-size=3", "synthetic"], {})
    assert stop.value.code == 2


@given(st.integers(1, 5000))
def test_the_default_microbatch_divides_the_batch_and_never_exceeds_32(batch_size: int) -> None:
    config = TrainConfig(batch_size=batch_size)
    assert batch_size % config.samples_per_microbatch == 0
    assert config.samples_per_microbatch <= 32
    assert config.num_microbatches * config.samples_per_microbatch == batch_size


def test_the_json_form_has_every_field() -> None:
    document = json.loads(TrainConfig(data="d", shape=(2, 1)).to_json())
    assert (document["data"], document["shape"]) == ("d", [2, 1])
