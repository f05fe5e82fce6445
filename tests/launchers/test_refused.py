"""Processes that cannot be one job: each door says why in one line, and ends with 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.cluster.programs import Program
from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.launchers.test_launchers import LIMIT_S, OPTIONS, launched
from tests.waiting import wait_until
from tests.warm import ROOT, Warm

REFUSED = ROOT / "tests" / "launchers" / "refused.py"
BIN = Path(sys.executable).parent
WORKER = (*OPTIONS, f"--model={REFUSED}:build", "--image-size=8", "synthetic")
DOORS = {
    "worker": ("-m", "bundlerun.workers.train", *WORKER),
    "protect": (str(REFUSED), "protect"),
    "bundle": (str(REFUSED), "bundle"),
}


def words_of(door: str, folder: Path) -> list[str]:
    """One process, started by hand."""
    return [sys.executable, *DOORS[door], f"--run-dir={folder / 'run'}"]


@pytest.mark.parametrize("door", DOORS)
def test_a_launcher_that_gave_no_rank_is_one_line(door: str, warm: Warm, tmp_path: Path) -> None:
    environ = {**os.environ, "WORLD_SIZE": "2"}
    done = warm.run(words_of(door, tmp_path), timeout=LIMIT_S, env=environ)
    assert done.returncode == 2
    assert done.stderr.startswith("error: WORLD_SIZE=2 says that this is one of several processes")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("door", ["worker", "protect"])
def test_a_run_folder_that_another_has_is_refused(door: str, warm: Warm, tmp_path: Path) -> None:
    holder = Holder.of_process("another job", "a test")
    with Claim(RunPaths(tmp_path / "run"), holder, print).take():
        done = warm.run(words_of(door, tmp_path), timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"is in use by process {os.getpid()} on node" in done.stderr
    assert "nobody has told this process of others: where both are to be ranks" in done.stderr


def test_of_several_processes_that_each_believe_to_be_alone_one_goes_on(
    warm: Warm, tmp_path: Path
) -> None:
    until, log = tmp_path / "until", tmp_path / "log"
    words = [*words_of("protect", tmp_path), f"--until={until}"]
    with log.open("ab") as file:
        programs: list[Program] = [
            warm.start(words, stdout=file, stderr=file, start_new_session=True) for _ in range(3)
        ]
    try:
        # The one that is left waits in its step.
        wait_until(lambda: sum(program.poll() is None for program in programs) == 1)
        assert log.read_text().count("is in use by process") == 2
        until.touch()
        assert sorted(program.wait(LIMIT_S) for program in programs) == [0, 2, 2]
    finally:
        for program in programs:
            program.kill()


def differing(door: str, folder: Path) -> list[str]:
    """Two ranks, of which each has another model."""
    own = ["--devices=cpu", "--slots=2", f"--run-dir={folder / 'run'}", "--node-name=here"]
    if door == "worker":
        return [str(BIN / "bundlerun"), "run", *own, *WORKER]
    return [str(BIN / "bundlerun"), "script", *own, *DOORS[door], f"--run-dir={folder / 'own'}"]


@pytest.mark.parametrize(
    ("door", "told"),
    [
        ("worker", "1.weight of stage 0 is (8, 192) float32 on rank 0 on here and (9, 192) flo"),
        ("bundle", "1.weight of stage 0 is (8, 192) float32 on rank 0 on here and (9, 192) flo"),
        ("protect", "'model.1.bias': it is (8,) float32 on rank 0 on here and (9,) float32 on"),
    ],
)
def test_ranks_that_have_made_different_models_are_told_once(
    door: str, told: str, warm: Warm, tmp_path: Path
) -> None:
    done = warm.run(differing(door, tmp_path), timeout=LIMIT_S)
    assert done.returncode == 2, done.stderr
    check_told_once(done.stderr, told)
    assert "another start would not change; first of all local rank " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("door", ["bundle", "protect"])
def test_torchruns_ranks_say_it_once_as_well(door: str, tmp_path: Path) -> None:
    words = ["torchrun", "--standalone", "--nproc-per-node=2", *DOORS[door]]
    check_told_once(launched(words, tmp_path, options=()).stderr, "on rank 0 on ")


def check_told_once(text: str, told: str) -> None:
    lines: Sequence[str] = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert told in lines[0]
