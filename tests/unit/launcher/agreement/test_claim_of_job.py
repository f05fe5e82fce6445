"""Nodes of one job share its claim, take it over, and start again with it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict

import pytest

from bundlerun.launcher.agreement import claim as module
from bundlerun.launcher.agreement.claim import Claim, gone_holder
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.unit.launcher.agreement.claims import another_process, claim_of, names, parents, put
from tests.waiting import wait_until


def test_nodes_of_one_job_share_the_claim(paths: RunPaths) -> None:
    with another_process() as pid:
        first = Holder.of_process("job", "a test", pid=pid)
        put(paths, 1, **asdict(first))
        with claim_of(paths, "job").take().keep({}):
            assert names(paths) == ["000001.json"]
        assert names(paths) == ["000001.json"]  # not ours to release


def test_a_job_that_starts_again_where_its_holder_was_killed_claims_anew(paths: RunPaths) -> None:
    put(paths, 1, job="job", pid=os.getpid(), started=1)
    with claim_of(paths, "job").take().keep({}):
        assert names(paths) == ["000002.json"]


def test_the_next_start_by_the_same_agent_goes_on_with_its_claim(paths: RunPaths) -> None:
    claim_of(paths, "job").take().keep({})  # its rank died here
    with claim_of(paths, "job").take().keep({}):
        assert names(paths) == ["000001.json"]
    assert names(paths) == ["000001.over"]


def test_an_agent_whose_job_has_another_name_in_the_next_round_claims_under_that(
    paths: RunPaths,
) -> None:
    """torchrun's job without a name: one node's has the agent's, several nodes' has none."""
    claim_of(paths, "torchrun 7").take().keep({})
    with claim_of(paths, "torchrun none").take().keep({}):
        assert names(paths) == ["000002.json"]
        assert "torchrun none" in (paths.claims / "000002.json").read_text()


def test_where_the_holder_of_a_job_is_gone_another_of_its_nodes_takes_over(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    monkeypatch.setattr(module, "TAKE_OVER_S", 0.1)
    put(paths, 1, job="job", machine="elsewhere")
    with claim_of(paths, "job").take().keep({}):
        wait_until(lambda: names(paths) == ["000002.json"])
        with pytest.raises(ConfigError):
            claim_of(paths, "two", **parents()).check()


def test_a_holder_that_ends_leaves_the_claim_to_the_nodes_that_go_on(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    first = put(paths, 1, job="job", machine="elsewhere")
    with claim_of(paths, "job").take().keep({}):
        first.rename(first.with_suffix(".over"))
        wait_until(lambda: names(paths) == ["000002.json"])


def test_a_node_that_joined_claims_where_the_first_has_left_nothing(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    put(paths, 1, job="job", machine="elsewhere")
    with claim_of(paths, "job").take().keep({}):
        # Renamed first: the claim may come back while the folder is being removed.
        shutil.rmtree(paths.root.rename(paths.root.with_name("gone")))
        wait_until((paths.claims / "000001.json").exists)


def test_a_node_that_joins_its_job_clears_nothing(paths: RunPaths) -> None:
    put(paths, 1, job="job", machine="elsewhere")
    write_text(paths.outcome, "{}")
    with claim_of(paths, "job").take().keep({"--lr": "0.1"}):
        assert paths.outcome.exists()
        assert not paths.terms.exists()


def test_a_node_that_joins_leaves_the_end_and_requests_of_its_job_alone(paths: RunPaths) -> None:
    with claim_of(paths, "one").take(), another_process() as pid:
        for path in (paths.outcome, paths.drain):
            write_text(path, "{}")
        os.utime(paths.drain, (0, 0))
        Claim(paths, Holder.of_process("one", "a test", pid=pid), print).take().keep({"a": "1"})
        assert paths.outcome.exists()
        assert paths.drain.exists()
        assert not paths.terms.exists()


def test_a_dead_claim_of_the_same_job_on_another_machine_is_no_start_to_join(
    paths: RunPaths,
) -> None:
    path = put(paths, 1, job="job", machine="elsewhere")
    for each in (paths.outcome, paths.drain):
        write_text(each, "{}")
    an_hour_ago = time.time() - 3600
    for each in (path, paths.drain):
        os.utime(each, (an_hour_ago, an_hour_ago))
    with claim_of(paths, "job").take().keep({"--lr": "0.1"}):
        assert names(paths) == ["000002.json"]
        assert not paths.outcome.exists()
        assert not paths.drain.exists()
        assert paths.terms.exists()


def test_a_holder_that_was_taken_over_by_its_job_claims_again_when_that_node_is_gone(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    monkeypatch.setattr(module, "TAKE_OVER_S", 0.1)
    with claim_of(paths, "job").take().keep({}):
        put(paths, 2, job="job", machine="elsewhere")
        (paths.claims / "000001.json").unlink()
        wait_until(lambda: names(paths) == ["000003.json"])


def test_a_dead_holder_with_other_nodes_is_gone_once_none_of_them_has_taken_over(
    paths: RunPaths,
) -> None:
    dead = put(paths, 1, started=1)
    assert gone_holder(paths) == ""
    before = dead.stat().st_mtime - module.TAKE_OVER_S - module.BEAT_S - 1.0
    os.utime(dead, (before, before))
    assert gone_holder(paths).startswith("killed or lost: ")
