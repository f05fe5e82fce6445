from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main


def test_the_table_has_a_row_for_each_size_spares_and_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "goodput --nodes 10..100 --spares 0,5% --runs 2 --for 10d --step 2s"
    assert main(shlex.split(words)) == 0
    out = capsys.readouterr().out
    assert out.startswith("a node fails every 264 d, for 1 d\n")
    assert "bundlerun: 820 ms" in out
    assert "torchrun: 10.7 s to the next step" in out
    rows = [
        line.split() for line in out.splitlines() if "%  " in line and line.lstrip()[0].isdigit()
    ]
    assert [row[:3] for row in rows] == [
        [nodes, spares, way]
        for nodes, few in (("10", "1"), ("100", "5"))
        for spares in ("0", few)
        for way in ("bundlerun", "torchrun")
    ]
    assert main(shlex.split(words)) == 0
    assert capsys.readouterr().out == out


def test_json_has_the_terms_and_pictures_are_drawn_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="draws")
    png, svg = tmp_path / "new" / "a.png", tmp_path / "a.svg"
    words = f"goodput --nodes 8..20 --runs 1 --for 10d --json --png {png} --svg {svg}"
    assert (
        main([*shlex.split(words), "--shape", "8,8", "--rack-nodes", "4", "--rack-mtbf", "1y"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["for_s"] == 864000
    assert len(document["rows"]) == 12
    for row in document["rows"]:
        assert sum(row["terms"].values()) == pytest.approx(1.0)
        assert row["goodput"] == row["terms"]["training"]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()


def test_what_is_measured_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "goodput --nodes 100 --spares 3 --no-torchrun --runs 1 --mtbf never --crash-every 1d "
        "--recovery 100s --recovery-per-node 1s --join 0s --snapshot-cost 0% --step 1ms --json "
        "--checkpoint-every never"
    )
    assert main(shlex.split(words)) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["recovery_s"] == 200
    assert row["goodput"] == pytest.approx(0.79, abs=0.02)  # exp(-100 / 86400 x 200)
    assert row["checkpoint_every_s"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--nodes 0", "--nodes '0' is not numbers from 1 to 1,000,000"),
        ("--mtbf 5", "--mtbf '5' is not a number with one of"),
        ("--mtbf 0s", "--mtbf '0s' must be above 0"),
        ("--spares few", "--spares 'few' is neither a number nor a percentage"),
        ("--spares 9999999", "--spares 9999999 is more than"),
        ("--shape 1,x", "--shape '1,x' is not whole numbers"),
        ("--shape '8,8|8'", "--shape '8,8|8' has several; the simulation takes one"),
        ("--shape auto", "--shape auto needs a model"),
        ("--shape 100", "10 nodes of 8 devices do not hold a bundle of 100; give --nodes 13"),
        ("--devices-per-node 0", "--devices-per-node 0 must be 1 or more"),
        ("--rack-nodes=-1", "--rack-nodes -1 must be 0 or more"),
        ("--rack-mtbf 5y", "--rack-mtbf needs --rack-nodes"),
        ("--min-nodes 11", "--min-nodes 11 is more than the 10 of --nodes"),
        ("--snapshot-steps 0", "--snapshot-steps 0 must be 1 or more"),
        ("--snapshot-cost 1", "--snapshot-cost '1' is not a percentage"),
        ("--step 0s", "--step '0s' must be above 0"),
        ("--runs=-1", "--runs -1 is negative"),
        ("--mtbf 1s", "failures of 10 nodes, more than a simulation takes"),
        ("--png a.svg", "--png 'a.svg' does not end in .png"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_exit_code_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--nodes" in words else ["--nodes=10"]
    assert main(["goodput", *given, *shlex.split(words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_neither_torch_nor_matplotlib_is_loaded_for_a_table() -> None:
    script = (
        "import sys; from bundlerun.launcher.cli import main\n"
        "code = main(['goodput', '--nodes=10', '--runs=1'])\n"
        "print({'torch', 'matplotlib', 'numpy'} & set(sys.modules), code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip().endswith("set() 0")
