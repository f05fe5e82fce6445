"""CPUs that another job's rank is pinned to."""

from __future__ import annotations

import os
from pathlib import Path

from bundlerun.launcher.layout.machine.pinning import claim_cpus


def in_another_process(folder: Path, *cpus: int) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(int(claim_cpus(cpus, folder=folder)))
    return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_cpus_are_one_jobs_until_its_process_ends(tmp_path: Path) -> None:
    assert in_another_process(tmp_path, 0, 1)
    assert claim_cpus((0, 1), folder=tmp_path)
    assert not in_another_process(tmp_path, 1, 2)
    assert in_another_process(tmp_path, 2, 3)


def test_who_is_refused_one_takes_none(tmp_path: Path) -> None:
    assert claim_cpus((5,), folder=tmp_path)
    ready, told = os.pipe()
    go_on, told_to = os.pipe()
    pid = os.fork()
    if pid == 0:
        claimed = claim_cpus((4, 5), folder=tmp_path)
        os.write(told, bytes([claimed]))
        os.read(go_on, 1)
        os._exit(0)
    assert os.read(ready, 1) == bytes([False])
    assert in_another_process(tmp_path, 4)
    os.write(told_to, b"x")
    os.waitpid(pid, 0)


def test_where_nothing_can_be_locked_they_count_as_free(tmp_path: Path) -> None:
    assert claim_cpus((0,), folder=tmp_path / "missing")
