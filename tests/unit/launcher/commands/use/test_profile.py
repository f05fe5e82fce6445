"""`bundlerun profile`: what it prints and keeps, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.profile_key import DECIDING, profile_key
from bundlerun.launcher.cli import main
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.options.declared import options_of
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.run_folder.paths import RunPaths

MODEL = str(Path(__file__).parents[4] / "ranks" / "tiny_model.py") + ":build"
TINY = [
    "--model", MODEL, "--image-size", "8", "--num-classes", "4", "--synthetic-samples", "16",
    "--devices", "cpu", "--slots", "2", "--shape", "1,1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "4,x"], "--sizes '4,x' is not N[,N...]"),
        (["--sizes", "0"], "--sizes '0' is not N[,N...]"),
        (["--estimate"], "an estimate needs --tflops of the device, above 0, and it is 0"),
        (["--tflops", "3"], "an estimate needs --memory-gb-s of the device"),
        (["--tflops", "-3", "--memory-gb-s", "1"], "--tflops of the device, above 0"),
        (["--peers", "a,b"], "--peers goes with --links"),
        (["-o", "cluster.toml"], "--output goes with --links"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *TINY, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_gpus_that_are_not_here_can_be_estimated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUNDLERUN_CPU_ONLY", "1")
    words = [word for word in TINY if word not in ("--slots", "2")]
    words[words.index("cpu")] = "gpu"
    assert main(["profile", *words]) == 2
    assert "estimate with --tflops and --memory-gb-s" in capsys.readouterr().err
    words += ["--tflops", "60", "--memory-gb-s", "3000", "--microbatch-size", "4", "--json"]
    assert main(["profile", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key"]["is_estimate"]
    assert found["key"]["device"] == ""
    assert all(piece["kept_bytes"] >= 0 for piece in found["by_samples"][0]["pieces"])


def test_a_profile_is_kept_in_the_run_folder_and_one_of_other_options_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["profile", *TINY, "--run-dir", str(tmp_path), "--batch-size", "32"]
    assert main([*words, "--sizes", "2,4"]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert "micro-batches of 2," in shown.out
    assert "micro-batches of 4," in shown.out
    config = TrainConfig(
        data="synthetic", model=MODEL, image_size=8, num_classes=4, synthetic_samples=16
    )
    key = profile_key(config, kind="cpu", threads=1)
    path = RunPaths(tmp_path).model_profile
    kept = profile_file.read(path, key, (2, 4)).profile
    assert kept is not None
    assert kept.at(3).samples == 3
    assert kept.cutter == "graph"
    assert kept.update.load_s > 0
    assert main([*words, "--sizes", "4", "--precision", "float64"]) == 0
    shown = capsys.readouterr()
    assert "is of another precision (float32, now float64), and is ignored: it is" in shown.err
    assert profile_file.read(path, key).profile is None


def test_the_key_is_of_options_that_there_are() -> None:
    assert set(DECIDING) <= {field.name for field in options_of(TrainConfig)}


def test_links_inside_this_node_are_a_cluster_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    words = ["profile", "--links", "--devices", "cpu", "--slots", "2", "-o", str(file)]
    assert main(words) == 0
    assert "1 nodes" in capsys.readouterr().out
    (kind,) = read_cluster(file).kinds
    assert kind.devices == 2
    assert 1e8 < kind.inside.bytes_per_s < 1e12
    assert 0 < kind.inside.latency_s < 1
    assert main([*words[:-1], str(tmp_path / "cluster.toml" / "no")]) == 3
    assert "cannot write" in capsys.readouterr().err
