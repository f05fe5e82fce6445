"""One run at a time has a run folder, whoever is killed, frozen or slow."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from bundlerun.launcher.agreement import claim as module
from bundlerun.launcher.agreement.claim import Claim, gone_holder
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.holder import TORCHRUN, Holder, job_of_one_node
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.unit.launcher.agreement.claims import (
    another_process,
    claim_of,
    names,
    parents,
    put,
    touched,
)
from tests.waiting import wait_until

LIMIT_S = 20.0


def test_a_second_run_is_told_who_has_the_folder(paths: RunPaths) -> None:
    with claim_of(paths, "one", node="n1").take().keep({}), pytest.raises(ConfigError) as caught:
        claim_of(paths, "two", **parents()).check()
    text = str(caught.value)
    assert f"is in use by process {os.getpid()} on node n1 (a test, since 20" in text
    assert "give another --run-dir, or end that run first: bundlerun drain" in text


def test_looking_leaves_nothing(paths: RunPaths) -> None:
    claim_of(paths, "one").check()
    assert not paths.root.exists()


def test_a_run_that_has_ended_frees_the_folder_and_keeps_its_number(paths: RunPaths) -> None:
    with claim_of(paths, "one").take().keep({}):
        assert names(paths) == ["000001.json"]
    assert names(paths) == ["000001.over"]
    with claim_of(paths, "two").take().keep({}):
        assert names(paths) == ["000002.json"]


def test_the_claim_of_a_killed_process_binds_nobody_at_once(paths: RunPaths) -> None:
    with another_process() as pid:
        started = Holder.of_process("", "", pid=pid).started
        put(paths, 1, pid=pid, started=started)
        with pytest.raises(ConfigError, match=f"process {pid} "):
            claim_of(paths, "two").check()
        os.kill(pid, signal.SIGKILL)  # it stays a zombie, as under a first process that waits not
        wait_until(lambda: Holder.of_process("", "", pid=pid).started == 0)
        before = time.monotonic()
        with claim_of(paths, "two").take().keep({}):
            assert time.monotonic() - before < module.WATCH_S
            assert names(paths) == ["000002.json"]


def test_a_process_id_that_was_given_again_is_another_process(paths: RunPaths) -> None:
    put(paths, 1, pid=os.getpid(), started=1)
    claim_of(paths, "two").check()


def test_another_machines_claim_holds_as_long_as_it_is_touched(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = put(paths, 1, machine="elsewhere", node="far"), list[str]()
    with touched(path), pytest.raises(ConfigError, match="on node far"):
        claim_of(paths, "two", said).check(watch_s=LIMIT_S)
    assert "looking for up to 20 s whether it still is" in said[0]
    with claim_of(paths, "two", said).take(watch_s=0.6).keep({}):
        assert names(paths) == ["000002.json"]


def test_the_holder_touches_its_claim(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    with claim_of(paths, "one").take().keep({}):
        path = paths.claims / "000001.json"
        before = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns != before)


def test_of_many_that_come_at_once_exactly_one_has_the_folder(paths: RunPaths) -> None:
    ready, held, refused = threading.Barrier(8), list[Claim](), list[str]()

    def come(number: int, pid: int) -> None:
        claim = Claim(paths, Holder.of_process(f"job {number}", "a test", pid=pid), print)
        ready.wait()
        try:
            held.append(claim.take())
        except ConfigError as exc:
            refused.append(str(exc))

    with ExitStack() as processes:
        pids = [processes.enter_context(another_process()) for _ in range(8)]
        threads = [threading.Thread(target=come, args=each) for each in enumerate(pids)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
    assert (len(held), len(refused)) == (1, 7)
    assert len(names(paths)) == 1
    held[0].release()


def test_a_claim_made_on_an_old_view_of_the_folder_is_withdrawn(paths: RunPaths) -> None:
    late = claim_of(paths, "late")
    put(paths, 7)  # alive; `late` looked before it was there, when 4 was the last number
    assert not late._is_made([])
    assert names(paths) == ["000007.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": "x"}'])
def test_a_claim_that_cannot_be_read_is_watched_as_one_of_another_machine(
    paths: RunPaths, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    path = paths.claims / "000003.json"
    write_text(path, text)
    with touched(path), pytest.raises(ConfigError, match=r"by whoever wrote 000003\.json, in"):
        claim_of(paths, "one").check(watch_s=LIMIT_S)
    with claim_of(paths, "one").take(watch_s=0.1):
        assert names(paths) == ["000004.json"]


def test_a_new_start_clears_the_end_of_an_old_one_and_keeps_its_terms(paths: RunPaths) -> None:
    write_text(paths.outcome, "{}")
    with claim_of(paths, "one").take().keep({"--lr": "0.1"}):
        assert not paths.outcome.exists()
        assert json.loads(paths.terms.read_text()) == {"--lr": "0.1"}


def test_a_start_of_which_nothing_comes_leaves_the_end_of_the_one_before(paths: RunPaths) -> None:
    write_text(paths.outcome, '{"state": "done"}')
    with claim_of(paths, "one").take():
        assert not paths.outcome.exists()
    assert paths.outcome.read_text() == '{"state": "done"}'
    with claim_of(paths, "one").take().keep({}):
        pass
    assert not paths.outcome.exists()


def test_a_run_that_was_frozen_and_taken_for_dead_ends(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; "
        "from bundlerun.launcher.agreement import claim; "
        "from bundlerun.launcher.run_folder.paths import RunPaths; claim.BEAT_S = 0.02; "
        "me = claim.Holder.of_process('frozen', 'a test'); "
        "claim.Claim(RunPaths(Path(sys.argv[1])), me, print).take().keep({}); time.sleep(30)"
    )
    paths = RunPaths(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        wait_until((paths.claims / "000001.json").exists)
        os.kill(process.pid, signal.SIGSTOP)
        put(paths, 2)
        (paths.claims / "000001.json").unlink()
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(LIMIT_S) == 2
    finally:
        process.kill()
        process.wait()


def test_who_begins_a_start_clears_what_is_older_than_it_and_keeps_a_newer_request(
    paths: RunPaths,
) -> None:
    for path in (paths.outcome, paths.drain):
        write_text(path, "{}")
    with claim_of(paths, "one").take():  # the request came since this process began
        assert not paths.outcome.exists()
        assert paths.drain.exists()
    os.utime(paths.drain, (0, 0))
    with claim_of(paths, "one").take():
        assert not paths.drain.exists()


def test_a_claim_that_was_found_silent_is_not_watched_again_to_take_the_folder(
    paths: RunPaths,
) -> None:
    put(paths, 1, machine="elsewhere")
    said = list[str]()
    claim = claim_of(paths, "two", said)
    claim.check(watch_s=0.1)
    with claim.take(watch_s=LIMIT_S):
        assert names(paths) == ["000002.json"]
    assert len(said) == 1


@pytest.mark.parametrize(("how", "limit_s"), [("bundlerun run", 15), (TORCHRUN, 90)])
def test_how_long_a_claim_is_watched(paths: RunPaths, how: str, limit_s: float) -> None:
    put(paths, 1, how=how)
    (found,) = module._found(paths.claims)
    assert found.watch_s == limit_s


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_told_once_at_most_and_the_claim_is_made_later(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tries, said = list[int](), list[str]()

    def failing(path: Path, text: str) -> bool:
        tries.append(number)
        if len(tries) < 5:
            raise OSError(number, os.strerror(number))
        return create_text(path, text)

    monkeypatch.setattr(module, "BEAT_S", 0.02)
    first = put(paths, 1, job="job", machine="elsewhere")
    with claim_of(paths, "job", said).take().keep({}):
        monkeypatch.setattr(module, "create_text", failing)
        first.rename(first.with_suffix(".over"))
        wait_until(lambda: names(paths) == ["000002.json"])
    assert len(said) == (1 if number == errno.ENOSPC else 0)


@pytest.mark.parametrize(
    ("written_at", "older"), [(89.0, False), (88.9, True), (99.5, False), (101.0, False)]
)
def test_what_is_older_than_a_process_of_ten_seconds(written_at: float, older: bool) -> None:
    assert module.is_older(written_at, now=100.0, than_s=10.0) == older


def test_a_holder_that_is_dead_or_silent_is_gone(paths: RunPaths) -> None:
    with another_process() as pid:
        here = put(paths, 1, **asdict(Holder.of_process(job_of_one_node(), "a test", pid=pid)))
        assert gone_holder(paths) == ""
    assert gone_holder(paths).startswith(f"killed or lost: process {pid} on node ")
    here.rename(here.with_suffix(".over"))
    assert gone_holder(paths) == ""
    elsewhere = put(paths, 2, machine="another", node="b")
    assert gone_holder(paths) == ""
    before = elsewhere.stat().st_mtime - 100.0
    os.utime(elsewhere, (before, before))
    assert "; last sign of life 1" in gone_holder(paths)
