from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bundlerun.launcher.agreement import claim as module
from bundlerun.launcher.agreement.claim import Claim, gone_holder
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.holder import TORCHRUN, Holder, job_of_one_node
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.waiting import wait_until

LIMIT_S = 20.0


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def claim_of(paths: RunPaths, job: str, said: list[str] | None = None, **holder: object) -> Claim:
    me = replace(Holder.of_process(job, "a test"), **holder)
    return Claim(paths, me, (said if said is not None else []).append)


def put(paths: RunPaths, number: int, **holder: object) -> Path:
    """A claim as another process would have left it."""
    path = paths.claims / f"{number:06d}.json"
    write_text(path, json.dumps(asdict(replace(Holder.of_process("other", "a test"), **holder))))
    return path


@contextmanager
def another_process() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def touched(path: Path) -> Iterator[None]:
    """Its holder lives, on a machine whose clock is not ours."""
    is_over = threading.Event()

    def touch() -> None:
        while not is_over.wait(0.02):
            os.utime(path, (1.0, time.monotonic()))

    other = threading.Thread(target=touch)
    other.start()
    try:
        yield
    finally:
        is_over.set()
        other.join()


def parents() -> dict[str, object]:
    """The fields of a holder that is another process, and alive as long as this one."""
    holder = Holder.of_process("", "", pid=os.getppid())
    return {"pid": holder.pid, "started": holder.started}


def names(paths: RunPaths) -> list[str]:
    return sorted(path.name for path in paths.claims.iterdir())


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


def test_another_machines_claim_holds_as_long_as_it_is_touched(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = put(paths, 1, machine="elsewhere", node="far"), list[str]()
    with touched(path), pytest.raises(ConfigError, match="on node far"):
        claim_of(paths, "two", said).check(watch_s=LIMIT_S)
    assert "looking for up to 20 s whether it still is" in said[0]
    with claim_of(paths, "two", said).take(watch_s=0.6).keep({}):
        assert names(paths) == ["000002.json"]


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
        shutil.rmtree(paths.root)
        wait_until((paths.claims / "000001.json").exists)


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


def test_a_node_that_joins_its_job_clears_nothing(paths: RunPaths) -> None:
    put(paths, 1, job="job", machine="elsewhere")
    write_text(paths.outcome, "{}")
    with claim_of(paths, "job").take().keep({"--lr": "0.1"}):
        assert paths.outcome.exists()
        assert not paths.terms.exists()


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


def test_a_holder_that_was_taken_over_by_its_job_claims_again_when_that_node_is_gone(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    monkeypatch.setattr(module, "TAKE_OVER_S", 0.1)
    with claim_of(paths, "job").take().keep({}):
        put(paths, 2, job="job", machine="elsewhere")
        (paths.claims / "000001.json").unlink()
        wait_until(lambda: names(paths) == ["000003.json"])


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


def test_a_dead_holder_with_other_nodes_is_gone_once_none_of_them_has_taken_over(
    paths: RunPaths,
) -> None:
    dead = put(paths, 1, started=1)
    assert gone_holder(paths) == ""
    before = dead.stat().st_mtime - module.TAKE_OVER_S - module.BEAT_S - 1.0
    os.utime(dead, (before, before))
    assert gone_holder(paths).startswith("killed or lost: ")
