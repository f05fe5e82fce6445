"""The command line: quick, without torch, with exit codes."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bundlerun.launcher.cli import COMMANDS, main
from bundlerun.launcher.commands.arguments.run_folder import BATCH_SYSTEMS
from bundlerun.launcher.commands.plan import parse_nodes
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.meeting.site import SITES
from bundlerun.launcher.options.declared import flag_of, options_of
from bundlerun.launcher.options.usage import check_variables


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "run --help",
        "run --help-all",
        "plan --help",
        "classic --help",
        "export --help",
        "submit --help",
        "doctor --help",
        "doctor --quick --devices cpu",
        "plan --nodes 4x8,2x4 --shape 1,1",
        "plan --json --devices cpu",
        "plan --nodes 1x6 --shape 2,1 --schedule zero-bubble",
        "classic --dry-run synthetic",
        "run --dry-run --devices cpu --slots 4 synthetic",
    ],
)
def test_help_and_plans_do_not_import_torch(words: str) -> None:
    script = (
        "import sys; from bundlerun.launcher.cli import main\n"
        f"try: code = main({shlex.split(words)!r})\n"
        "except SystemExit as exc: code = exc.code\n"
        "print('torch' in sys.modules, code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip().endswith("False 0")
    assert done.stdout


def test_every_command_has_a_module_with_the_two_functions() -> None:
    for command in COMMANDS.values():
        assert callable(importlib.import_module(command.arguments).add_arguments)
        assert callable(importlib.import_module(command.module).run)


def test_help_shows_what_most_need_and_help_all_every_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as exited:
            main(["run", flag])
        assert exited.value.code == 0
        texts[flag] = capsys.readouterr().out
    every = [flag_of(f.name) for cls in (TrainConfig, LaunchConfig) for f in options_of(cls)]
    assert all(
        f"{flag} " in texts["--help-all"] or f"{flag}," in texts["--help-all"] for flag in every
    )
    shown = [flag for flag in every if re.search(rf"^  {flag} ", texts["--help"], re.MULTILINE)]
    assert {"--model", "--shape", "--batch-size", "--lr", "--run-dir"} <= set(shown)
    assert len(shown) <= 14
    assert "bundlerun run --help-all" in " ".join(texts["--help"].split())
    # By group, as options are declared.
    assert "\nrendezvous:\n" in texts["--help-all"]


def test_a_short_command_has_one_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["drain", "--help"])
    shown = capsys.readouterr().out
    assert "--wait" in shown
    assert "--help-all" not in shown


def test_the_help_of_commands_loads_nothing_that_only_its_work_needs() -> None:
    """What takes long to load is why `--help` is slow; times would differ between machines."""
    script = (
        "import sys; from bundlerun.launcher.cli import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    heavy = {"asyncio", "difflib", "email", "hashlib", "json", "logging", "numpy", "psutil"}
    heavy |= {"socket", "subprocess", "tomllib"}
    # What a .pth file of the environment loads is not ours.
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not (heavy & set(done.stderr.split())) - set(bare.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --nodes 4y8", "--nodes '4y8' is not NODESxDEVICES"),
        ("plan --nodes 1x1 --shape 1,1", "1 devices do not hold one bundle of shape 1,1"),
        ("run --devices cpu --shape 0 synthetic", "--shape 0 has a stage without a device"),
        ("run --devices cpu --shape -1,1 synthetic", "every number must be 1 or more"),
        ("run --devices tpu synthetic", "--devices 'tpu' is not one of"),
        ("run --batch-size 20 --microbatch-size 7 synthetic", "use one of"),
        ("run --devices cpu --slots 2 /nowhere", "no data at '/nowhere'"),
        ("run --devices cpu --slots 2 --bundles 2 synthetic", "use --bundles 1 at most"),
        ("run", "DATA is missing"),
        ("classic --num-hp 0 /data", "--num-hp 0 must be 1 or more"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(words.replace("--shape -1,1", "--shape=-1,1"))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "usage", "message"),
    [
        (
            "run --batch 64 synthetic",
            "run [OPTIONS] [DATA]",
            "unknown option --batch; nearest: --ba",
        ),
        ("run --max-step=3 synthetic", "run [OPTIONS] [DATA]", "--max-step; nearest: --max-steps"),
        ("plan --node 2x2", "plan [OPTIONS] [DATA]", "unknown option --node; nearest: --nodes"),
        ("status a b", "status [-h] [--json] [--watch]", "one argument too many: 'b'"),
        ("drain x --wiat 3", "drain [-h]", "unknown option --wiat; nearest: --wait"),
        ("export x -o y.pt --besst", "export [-h]", "unknown option --besst; nearest: --best"),
        ("submit -- --modle x y", "submit ... -- [OPTIONS] [DATA]", "--modle; nearest: --model"),
    ],
)
def test_an_unknown_option_has_the_commands_own_usage_and_the_nearest_name(
    words: str, usage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(shlex.split(words))
    assert exited.value.code == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"usage: bundlerun {usage}")
    assert last.startswith("error: ")
    assert message in last


def test_an_unknown_command_has_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stauts", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'stauts'; nearest: status")


@pytest.mark.parametrize(
    ("name", "is_right"),
    [
        ("BUNDLERUN_LEARNING_RATE", False),
        ("BUNDLERUN_BATCHSIZE", False),
        ("BUNDLERUN_BATCH_SIZE", True),
        ("BUNDLERUN_SLOTS", True),
        ("BUNDLERUN_BOARD", True),
        ("BUNDLERUN_TEST_SLOW", True),
        ("BUNDLERUN_SERVICE_HOST", True),
        ("BUNDLERUN_HEAD_PORT_29400_TCP_ADDR", True),
        ("OTHER_LEARNING_RATE", True),
    ],
)
def test_a_variable_that_nobody_would_read_is_refused(
    name: str, is_right: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "8")
    assert main(["plan", "--nodes=1x2"]) == (0 if is_right else 2)
    assert (
        f"unknown variable {name} in the environment; nearest: " in capsys.readouterr().err
    ) is (not is_right)


def test_all_variables_of_the_project_are_known() -> None:
    """Else a program of ours would be refused for a variable that another one of ours has set."""
    root = Path(__file__).parents[3]
    folders = ("launcher", "workers", "splits", "slurm", "benchmarks", "examples")
    wrong = root / "benchmarks" / "errors"  # what is refused, on purpose
    files = [
        path
        for folder in folders
        for path in (root / folder).rglob("*.py")
        if not path.is_relative_to(wrong)
    ]
    found = {
        name for path in files for name in re.findall(r'"(BUNDLERUN_[A-Z_]+)"', path.read_text())
    }
    assert "BUNDLERUN_BOARD" in found
    check_variables(dict.fromkeys(found, ""), (TrainConfig, LaunchConfig))


def test_the_data_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUNDLERUN_DATA", "/data/x")
    assert main(["plan", "--nodes=1x2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["config"]["data"]
    assert found == {"value": "/data/x", "source": "environment BUNDLERUN_DATA"}


def test_a_bare_schedule_draws_the_configured_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLERUN_SCHEDULE", "gpipe")
    assert main(["plan", "--nodes=1x2", "--schedule"]) == 0
    assert "gpipe, 8 micro-batches per bundle" in capsys.readouterr().out
    assert main(["plan", "--nodes=1x2", "--schedule", "zero-bubble"]) == 0
    shown = capsys.readouterr().out
    assert "zero-bubble, 8 micro-batches per bundle" in shown
    assert "--schedule=zero-bubble" in shown


def test_underscores_are_taken_as_torchrun_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--nodes=1x4", "--batch_size=64", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["batch_size"] == {"value": 64, "source": "option"}


def test_classic_prints_the_command_it_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = "classic --batch-size 32 --rank 1 --num-hp 2 --IP 10.0.0.1 --world-size 2 --dry-run /d"
    assert main(shlex.split(words)) == 0
    printed = shlex.split(capsys.readouterr().out)
    assert printed[:2] == ["bundlerun", "run"]
    wanted = {
        "--batch-size=128",
        "--bundles=2",
        "--nnodes=2",
        "--node-rank=1",
        "--rdzv-backend=static",
        "--rdzv-endpoint=10.0.0.1:8888",
        "--shape=1,1",
    }
    assert wanted <= set(printed)


def test_nodes_are_counted_or_listed() -> None:
    assert parse_nodes("2x4, 8,1x2") == (4, 4, 8, 2)


@pytest.mark.parametrize("text", ["1000000000x8", "8,1000000", "1x99999999999999999999"])
def test_more_nodes_than_a_plan_is_for_are_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError, match="has more than 1,000,000 devices"):
        parse_nodes(text)


@pytest.mark.parametrize("text", ["", "0x4", "4x0", "axb", "4x8x2", "4x-1"])
def test_other_nodes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--nodes"):
        parse_nodes(text)


def test_without_a_command_the_help_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert set(COMMANDS) <= set(re.findall(r"^    (\S+)", text, re.MULTILINE))


def test_help_names_the_batch_systems_that_there_are() -> None:
    assert tuple(SITES) == BATCH_SYSTEMS


def test_cuts_takes_what_is_set_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same shell and the same file of options serve both; here the model stops it."""
    monkeypatch.setenv("BUNDLERUN_SLOTS", "4")
    path = tmp_path / "run.toml"
    path.write_text('devices = "cpu"\nmodel = "no_such_file.py:build"\n', encoding="utf-8")
    assert main(["cuts", "--config", str(path)]) == 2
    assert "no_such_file.py" in capsys.readouterr().err
