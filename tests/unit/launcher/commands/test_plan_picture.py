"""`bundlerun plan --picture` and `--trace`: files of a plan, beside what was measured."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.cli import main
from bundlerun.launcher.commands import plan as command
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.deciding.decide import Decided, choose
from bundlerun.launcher.deciding.decision import Chosen, Question
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.report.figures import drawing
from bundlerun.launcher.train_argv import read_train_argv
from tests.unit.launcher.planning.models import MB, nodes, profile_of
from tests.unit.launcher.report.made_run import make_run

OPTIONS = ["--model", "resnet18", "--batch-size=64", "--microbatch-size=8", "--shape=1,1"]
CLUSTER = '[[nodes]]\nname = "x&y"\ncount = 2\ndevices = 4\n[between]\ngbit_s = 1\n'


def plan(*words: str) -> list[str]:
    return ["plan", *OPTIONS, *words, "synthetic"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has a profile and measured steps."""
    paths = make_run(tmp_path_factory.mktemp("runs") / "run")
    profile = profile_of([0.01] * 4, trained_bytes=MB, message_bytes=MB)
    config = read_train_argv([*OPTIONS, "synthetic"], {}).value
    key = profile_key(config, kind="cpu", threads=1, is_estimate=True)
    profile_file.write(paths.model_profile, replace(profile, key=key))
    paths.cluster.write_text(CLUSTER)
    return paths.root


def test_a_picture_has_the_forecast_above_what_was_measured(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    picture, trace = tmp_path / "new" / "plan.svg", tmp_path / "new" / "plan.json.gz"
    words = plan("--nodes", "2x4", "--cut", "b1", "--run-dir", str(run_dir))
    code = (
        "import sys; from bundlerun.launcher.cli import main; "
        f"code = main({[*words, '--picture', str(picture), '--trace', str(trace)]!r}); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert str(picture) in done.stdout
    assert "ui.perfetto.dev" in done.stdout
    root = ElementTree.parse(picture).getroot()
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("stage 0", "b1", "x&y", "\N{MULTIPLICATION SIGN} 2", "F0", "B1", "exchange"):
        assert wanted in texts, wanted
    headings = [text for text in texts if text.startswith(("Forecast: ", "Measured, step "))]
    assert [text.split()[0] for text in headings] == ["Forecast:", "Measured,"]
    assert "what was foreseen" in headings[1]
    # Two micro-batches of 1 MB a bundle go forth, and two gradients back.
    assert texts.count("2 MB") >= 2
    # Nothing is left beside it.
    assert sorted(path.name for path in picture.parent.iterdir()) == ["plan.json.gz", "plan.svg"]
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert any(name.startswith("forecast: x&y stage 0") for name in names)
    assert "measured: node-b stage 1 bundle 1" in names


def test_without_a_profile_it_is_the_order_of_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "plan.json"
    words = plan("--nodes", "1x2", "--run-dir", str(tmp_path / "none"), "--json")
    assert main([*words, "--trace", str(trace)]) == 0
    found = json.loads(capsys.readouterr().out)["written"]
    assert found[0].startswith(str(trace))
    assert "no forecast: " in found[1]
    assert "bundlerun profile" in found[1]
    events = json.loads(trace.read_text())["traceEvents"]
    assert events[0]["args"]["name"] == "schedule: stage 0 (1 ms: a forward)"


def test_a_run_without_a_profile_has_its_own_passes_for_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_run(tmp_path / "run").root
    trace = tmp_path / "plan.json"
    assert main(plan("--nodes", "1x2", "--run-dir", str(root), "--trace", str(trace))) == 0
    events = json.loads(trace.read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names[0].startswith("schedule, passes as long as measured: stage 0")
    assert names[-1].startswith("measured: ")

    # Those of another shape are none of this plan's.
    words = plan("--shape=1,1,1", "--nodes", "1x3", "--run-dir", str(root), "--trace", str(trace))
    assert main(words) == 0
    assert "! what was measured had the shape 1,1, the plan has 1,1,1" in capsys.readouterr().out
    events = json.loads(trace.read_text())["traceEvents"]
    assert events[0]["args"]["name"].startswith("schedule: stage 0")


def test_a_plan_that_was_chosen_is_drawn_by_the_profile_that_was_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = replace(profile_of([0.01] * 4, trained_bytes=MB), cutter="graph")

    def chosen(train: Resolved[TrainConfig], *_: object) -> Decided:
        question = Question(options={}, num_nodes=2, devices="cpu", cluster="")
        document = choose(train, profile, nodes(2, 4), question)
        train = Chosen.from_plain(document["chosen"]).applied(train)
        return Decided(train=train, document=document, profile=profile)

    monkeypatch.setattr(command, "without_auto", chosen)
    trace = tmp_path / "plan.json"
    words = ["--model=resnet18", "--batch-size=64", "--shape=auto", "--nodes=2x4"]
    words += ["--run-dir", str(tmp_path / "none"), "--trace", str(trace)]
    assert main(["plan", *words, "synthetic"]) == 0
    name = json.loads(trace.read_text())["traceEvents"][0]["args"]["name"]
    assert name.startswith("forecast: node stage 0")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--picture", "plan.jpg"), "'plan.jpg' has none of the endings .svg, .png, .pdf"),
        (("--picture", ".svg"), "has none of the endings"),
        (("--picture", ""), "has none of the endings"),
        (("--trace", "plan.svg"), "'plan.svg' has none of the endings .json, .json.gz"),
        (("--trace", "folder.json"), "is a folder"),
        (("--picture", "file/plan.svg"), "cannot be written to"),
        (("--trace", "/proc/plan.json"), "cannot "),
    ],
)
def test_a_file_that_cannot_be_made_is_one_line(
    words: tuple[str, str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    assert main(plan("--nodes", "1x2", *words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words[0] in line
    assert wanted in line


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        drawing, "find_spec", lambda name: None if name == "matplotlib" else known(name)
    )
    assert main(plan("--nodes", "1x2", "--picture", "plan.svg")) == 2
    assert "pip install 'bundlerun[report]'" in capsys.readouterr().err
