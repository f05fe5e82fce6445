"""`bundlerun plan --cluster`: what a step is foreseen to take on nodes that a file describes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.cli import main
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import read_train_argv
from tests.unit.launcher.planning.models import MB, profile_of

CLUSTER = """
[[nodes]]
name = "gpu"
count = 2
devices = 4

[between]
gbit_s = 1
latency_us = 50
"""
OPTIONS = ["--model", "resnet18", "--batch-size", "64", "--microbatch-size", "8", "--max-steps=100"]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER)
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Has a profile of four pieces, the last of which takes as long as the others together."""
    profile = profile_of([0.01, 0.01, 0.01, 0.03], trained_bytes=MB)
    config = read_train_argv([*OPTIONS, "synthetic"], {}).value
    key = profile_key(config, kind="cpu", threads=1, is_estimate=True)
    estimate = replace(profile, key=key, cutter="graph")
    profile_file.write(RunPaths(tmp_path / "run").model_profile, estimate)
    return tmp_path / "run"


def plan(cluster: Path, run_dir: Path, *words: str) -> list[str]:
    nodes = ["--cluster", str(cluster), "--run-dir", str(run_dir)]
    return ["plan", *nodes, *OPTIONS, *words, "synthetic"]


def test_a_plan_for_a_cluster_says_what_a_step_takes(
    cluster: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(plan(cluster, run_dir, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices_per_node"] == [4, 4]
    forecast = found["forecast"]
    assert forecast["cut"] == ["b2"]
    assert sum(forecast["terms"].values()) == pytest.approx(forecast["step_s"])
    assert forecast["terms"]["computing"] == pytest.approx(2 * 0.09)
    assert forecast["samples_per_s"] == pytest.approx(64 / forecast["step_s"])
    assert forecast["hours"] == pytest.approx(100 * forecast["step_s"] / 3600)

    assert main(plan(cluster, run_dir, "--cut", "b1", "--sync", "flat")) == 0
    text = capsys.readouterr().out
    assert "shape 1,1 cut at b1, 1f1b, flat, micro-batches of 8" in text
    assert "nothing was timed" in text
    assert "another" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "resnet34"), "is of another model (--model resnet18, now --model resnet34)"),
        (("--image-size", "32"), "is of another model (--image-size 224, now --image-size 32)"),
        (("--precision", "float64"), "is of another model (float32, now float64)"),
    ],
)
def test_a_profile_of_another_model_is_ignored_and_said(
    words: tuple[str, ...],
    said: str,
    cluster: Path,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(plan(cluster, run_dir, "--json", *words)) == 0
    why = json.loads(capsys.readouterr().out)["forecast"]["why_not"]
    assert said in why
    assert why.endswith("and is ignored; bundlerun profile with the same options makes one")


def test_a_profile_of_other_data_and_versions_counts_and_is_told(
    cluster: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RunPaths(run_dir).model_profile
    (profile,) = filter(None, [profile_file.load(path).profile])
    key = replace(profile.key, versions="bundlerun 1, torch 2")
    profile_file.write(path, replace(profile, key=key))
    other = plan(cluster, run_dir, "--json")
    other[-1] = "/elsewhere"
    assert main(other) == 0
    data, version = json.loads(capsys.readouterr().out)["forecast"]["remarks"][1:3]
    assert data == "the profile is of other data: DATA synthetic, synthetic, now DATA /elsewhere"
    assert version.startswith("! the profile is of another version: bundlerun 1, torch 2, now ")


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"format": 1}'])
def test_a_torn_profile_is_ignored_and_said(
    text: str, cluster: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunPaths(run_dir).model_profile.write_text(text)
    assert main(plan(cluster, run_dir, "--json")) == 0
    assert (
        "and is ignored; bundlerun profile"
        in json.loads(capsys.readouterr().out)["forecast"]["why_not"]
    )


def test_without_a_profile_the_plan_says_how_to_get_one(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(plan(cluster, tmp_path / "none")) == 0
    assert "model-profile.json is not there; bundlerun profile" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--nodes", "3x4"), "--nodes 3x4 has 3 nodes of 12 devices, --cluster describes 2 of 8"),
        (("--cut", "9.x"), "--cut 9.x is no place that was profiled"),
        (("--shape", "3,6"), "do not hold one bundle"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: tuple[str, ...],
    wanted: str,
    cluster: Path,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(plan(cluster, run_dir, *words)) == 2
    assert wanted in capsys.readouterr().err


def test_a_wrong_cluster_file_is_one_line(
    tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(CLUSTER.replace("gbit_s = 1", "gbit_s = 0"))
    for command in ("plan", "run"):
        words = [command, *plan(wrong, run_dir)[1:]]
        assert main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "[between]" in line
        assert "gbit_s = 0 must be above 0" in line


def test_a_forecast_needs_no_torch(cluster: Path, run_dir: Path) -> None:
    code = (
        "import sys; from bundlerun.launcher.cli import main; "
        f"code = main({plan(cluster, run_dir)!r}); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
