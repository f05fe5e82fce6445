"""Whose the run folder is; which versions a node has; asking the run to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.sources import code_digest
from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.claim import check_shared, read_claim, take
from bundlerun.slurm.jobs import Slurm
from bundlerun.slurm.versions import check_versions, versions
from bundlerun.slurm.watch.asker import AGAIN_S, Asker
from tests.unit.slurm.test_jobs import SHOWN, Recorder


def no_wait(seconds: float) -> None:
    pass


def slurm(state: str) -> Slurm:
    return Slurm(Recorder(scontrol=SHOWN.replace("PENDING", state)))


def test_a_job_takes_a_folder_that_is_nobodys(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "new" / "run")
    claim = take(paths, 9, slurm("RUNNING"), sleep=no_wait)
    assert read_claim(paths) == claim
    assert claim.job_id == 9


def test_the_second_job_is_refused_with_the_firsts_id(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    take(paths, 7, slurm("RUNNING"), sleep=no_wait)
    with pytest.raises(ConfigError, match=r"in use by job 7 \(RUNNING\)"):
        take(paths, 9, slurm("RUNNING"), sleep=no_wait)


def test_of_two_that_claim_at_once_one_gives_way(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)

    def other_claims(seconds: float) -> None:
        paths.slurm_job.write_text(json.dumps({"job_id": 7, "nonce": "x"}))

    with pytest.raises(ConfigError, match="in use by job 7"):
        take(paths, 9, slurm("RUNNING"), sleep=other_claims)


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "NODE_FAIL"])
def test_a_job_that_is_over_holds_nothing(tmp_path: Path, state: str) -> None:
    take(RunPaths(tmp_path), 7, slurm(state), sleep=no_wait)
    assert take(RunPaths(tmp_path), 9, slurm(state), sleep=no_wait).job_id == 9


def test_a_requeued_job_takes_its_folder_again(tmp_path: Path) -> None:
    first = take(RunPaths(tmp_path), 7, slurm("RUNNING"), sleep=no_wait)
    again = take(RunPaths(tmp_path), 7, slurm("RUNNING"), sleep=no_wait)
    assert first.nonce != again.nonce


def test_a_damaged_claim_is_none(tmp_path: Path) -> None:
    RunPaths(tmp_path).slurm_job.write_text("{")
    assert read_claim(RunPaths(tmp_path)) is None


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="cannot write to --run-dir"):
        take(RunPaths(tmp_path / "file"), 9, slurm("RUNNING"), sleep=no_wait)


def test_a_folder_of_this_node_alone_is_found_out(tmp_path: Path) -> None:
    claim = take(RunPaths(tmp_path), 7, slurm("RUNNING"), sleep=no_wait)
    check_shared(tmp_path, claim.nonce, "n2", wait_s=0.0)
    with pytest.raises(NodeError, match="on node 'n2' is not the one"):
        check_shared(tmp_path / "local", claim.nonce, "n2", wait_s=0.0)


def test_the_same_versions_pass() -> None:
    check_versions(json.dumps(versions()), versions(), node="n2", first="n1")


def test_other_versions_are_named() -> None:
    here = versions() | {"torch": "2.11.0"}
    wanted = json.dumps(versions() | {"torch": "2.14.1"})
    with pytest.raises(NodeError, match=r"torch is 2\.11\.0 on n2, 2\.14\.1 on n1"):
        check_versions(wanted, here, node="n2", first="n1")


def test_the_digest_is_of_all_modules(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    file = tmp_path / "workers" / "a.py"
    file.write_text("1")
    before = code_digest(tmp_path)
    file.write_text("2")
    assert code_digest(tmp_path) != before


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_request_that_a_start_has_overlooked_is_made_again(tmp_path: Path) -> None:
    paths, clock = RunPaths(tmp_path), Clock()
    asker = Asker(paths, clock=clock)
    asker.insist()
    assert not paths.drain.exists()
    assert asker.ask("why")
    paths.drain.unlink()
    asker.insist()
    assert not paths.drain.exists()
    clock.now = AGAIN_S
    asker.insist()
    assert paths.drain.exists()


def test_a_run_that_has_ended_is_not_asked_again(tmp_path: Path) -> None:
    paths, clock = RunPaths(tmp_path), Clock()
    asker = Asker(paths, clock=clock)
    asker.ask("why")
    paths.drain.unlink()
    paths.outcome.touch()
    clock.now = AGAIN_S
    asker.insist()
    assert not paths.drain.exists()


def test_a_request_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not Asker(RunPaths(tmp_path / "file")).ask("why")
