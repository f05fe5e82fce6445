from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.cli import main
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.outcome import Outcome, write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def end(paths: RunPaths, step: int) -> None:
    write_outcome(paths, Outcome(state="stopped", exit_code=75, reason="told to", step=step))


def test_a_run_that_has_ended_is_not_asked(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    end(paths, 4)
    assert main(["drain", str(paths.root)]) == 0
    assert capsys.readouterr().out == "the run has ended already: stopped, told to\n"
    assert not paths.drain.exists()


def test_a_start_that_is_under_way_in_the_folder_of_a_run_that_has_ended_is_asked(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    with Claim(paths, Holder.of_process("job", "a test"), print).take():
        end(paths, 4)
        assert main(["drain", str(paths.root)]) == 0
        assert json.loads(paths.drain.read_text()) == {"why": "bundlerun drain"}
    assert "(a test, since 20" in capsys.readouterr().out


def test_who_waits_for_that_start_is_not_told_of_the_end_before(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    def obey() -> None:
        while not paths.drain.exists():
            time.sleep(0.01)
        end(paths, 9)

    with Claim(paths, Holder.of_process("job", "a test"), print).take():
        end(paths, 4)
        assert main(["drain", str(paths.root), "--wait", "0.3"]) == 1
        paths.drain.unlink()
        run = threading.Thread(target=obey)
        run.start()
        assert main(["drain", str(paths.root), "--wait", "20"]) == 0
        run.join()
    assert capsys.readouterr().out.endswith("\nstopped: told to\n")
