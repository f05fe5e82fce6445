"""Cores, memory and limits by facts; and how control groups are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.doctor.findings import Level
from bundlerun.launcher.doctor.machine import GIB, MachineFacts, check_machine, size
from bundlerun.launcher.doctor.read.machine import _group_memory, _tasks_left, read_machine

GOOD = MachineFacts(
    cores=(8, 8),
    threads=32,
    all_threads=32,
    load=1.0,
    memory_total=64 * GIB,
    memory_available=60 * GIB,
    shared_total=32 * GIB,
    shared_free=32 * GIB,
    open_files=(1024, 1048576),
    temporary_free=100 * GIB,
)


def levels(facts: MachineFacts) -> dict[str, Level]:
    return {each.subject: each.level for each in check_machine(facts)}


def test_a_good_machine_is_ok() -> None:
    assert set(levels(GOOD).values()) == {Level.OK}


@pytest.mark.parametrize(
    ("changes", "subject", "level"),
    [
        ({"quota": 0.5}, "cores", Level.WARNING),
        ({"load": 20.0}, "load", Level.WARNING),
        ({"memory_available": GIB}, "memory", Level.WARNING),
        ({"memory_limit": 4 * GIB, "memory_used": 3 * GIB}, "memory", Level.WARNING),
        ({"memory_limit": 8 * GIB, "memory_used": GIB}, "memory", Level.OK),
        ({"shared_total": None}, "/dev/shm", Level.ERROR),
        ({"shared_free": 1000}, "/dev/shm", Level.ERROR),
        ({"shared_total": 64 << 20, "shared_free": 64 << 20}, "/dev/shm", Level.WARNING),
        ({"open_files": (256, 256)}, "open files", Level.WARNING),
        ({"open_files": (32, 32)}, "open files", Level.ERROR),
        ({"open_files": (-1, -1)}, "open files", Level.OK),
        ({"tasks_left": 500}, "processes", Level.WARNING),
        ({"tasks_left": 5}, "processes", Level.ERROR),
        ({"pinned": 64 << 10, "has_rdma": True}, "locked memory", Level.WARNING),
        ({"temporary_error": "read-only file system"}, "temporary folder", Level.ERROR),
        ({"temporary_free": 1000}, "temporary folder", Level.WARNING),
    ],
)
def test_what_is_short_is_told(changes: dict[str, object], subject: str, level: Level) -> None:
    assert levels(replace(GOOD, **changes))[subject] is level  # type: ignore[arg-type]


def test_a_limit_that_nobody_meets_is_not_told() -> None:
    assert "locked memory" not in levels(replace(GOOD, pinned=64 << 10))
    assert "processes" not in levels(replace(GOOD, tasks_left=100_000))


def test_limits_of_control_groups_are_read(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    job = tmp_path / "sys/fs/cgroup/job"
    (job / "step").mkdir(parents=True)
    (job / "memory.max").write_text(f"{4 * GIB}\n")
    (job / "memory.current").write_text(f"{3 * GIB}\n")
    (job / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    (job / "step/memory.max").write_text("max\n")
    (job / "pids.max").write_text("100\n")
    (job / "pids.current").write_text("90\n")
    assert _group_memory(tmp_path) == (4 * GIB, 2 * GIB)
    assert _tasks_left(tmp_path) == 10


def test_this_machine_is_read() -> None:
    facts = read_machine()
    assert sum(facts.cores) <= facts.threads <= facts.all_threads
    assert 0 < facts.memory_available <= facts.memory_total
    assert facts.temporary_error == ""


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (512, 64 << 20, 3 * GIB // 2, 2 << 40)] == [
        "0 KiB", "64.0 MiB", "1.5 GiB", "2.0 TiB",
    ]  # fmt: skip
