"""Hosts of network namespaces: their links keep the rate, and nothing is left of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks.cluster.forked import Seat, run_ranks
from benchmarks.cluster.hosts import Hosts, Wire, open_hosts, why_not
from benchmarks.network.wire import measure

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]
DEADLINE_S = 20.0
TOLERANCE = 0.05
"""Of a rate; the benchmark `wire` measures it on a machine that is free."""
HOLD = """
    import sys, time
    from benchmarks.cluster.hosts import Wire, open_hosts
    from benchmarks.cluster.forked import run_ranks
    with open_hosts(2, Wire(mbit_per_s=100)) as hosts:
        run_ranks(hosts, (1, 1), lambda seat: (print("there", flush=True), time.sleep(600)))
"""


def namespace_of(link: str | Path) -> str:
    return str(Path(link).readlink())


def namespaces() -> set[str]:
    """The network namespaces of all processes, and those that descriptors hold."""
    links = [*Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc").glob("[0-9]*/fd/*")]
    found = set()
    for link in links:
        try:
            target = namespace_of(link)
        except OSError:
            continue
        if target.startswith("net:"):
            found.add(target)
    return found


def test_a_link_keeps_its_rate_and_counts_what_it_carries() -> None:
    with open_hosts(2, Wire(mbit_per_s=100)) as hosts:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            rows = measure(hosts, seconds=0.5)
            for row in rows:
                assert row["ratio"] < 1 + TOLERANCE
                assert row["wire_ratio"] == pytest.approx(1, abs=TOLERANCE)
            # Other work on the machine can slow a transfer down, never speed it up.
            if min(row["ratio"] for row in rows) > 1 - TOLERANCE:
                break
            assert time.monotonic() < deadline, rows


def test_ranks_of_a_host_share_it_and_others_do_not() -> None:
    def namespace(seat: Seat) -> list[object]:
        return [seat.env.node, namespace_of("/proc/self/ns/net")]

    with open_hosts(2, Wire(mbit_per_s=100)) as hosts:
        answers = run_ranks(hosts, (2, 1), namespace)
    assert [node for node, _ in answers] == [0, 0, 1]
    assert answers[0][1] == answers[1][1] != answers[2][1]
    assert namespace_of("/proc/self/ns/net") not in {name for _, name in answers}


def test_a_failing_rank_ends_the_others_with_its_traceback() -> None:
    def fail(seat: Seat) -> None:
        if seat.env.rank == 1:
            raise ValueError("on purpose")
        time.sleep(600)

    with (
        open_hosts(2, Wire(mbit_per_s=100)) as hosts,
        pytest.raises(RuntimeError, match=r"rank 1: (?s:.*)on purpose"),
    ):
        run_ranks(hosts, (1, 1), fail)


def made(hosts: Hosts) -> set[str]:
    return {namespace_of(f"/proc/self/fd/{descriptor}") for descriptor in hosts.namespaces}


def test_nothing_is_left_after_the_end() -> None:
    with open_hosts(2, Wire(mbit_per_s=100)) as hosts:
        names = made(hosts)
        assert names <= namespaces()
    assert not names & namespaces()


def test_nothing_is_left_after_a_kill() -> None:
    before = namespaces()
    code = textwrap.dedent(HOLD)
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert [holder.stdout.readline() for _ in range(2)] == ["there\n"] * 2
        names = {
            namespace_of(link) for link in Path(f"/proc/{holder.pid}/fd").glob("*") if link.exists()
        }
        names = {name for name in names if name.startswith("net:")} - before
        assert len(names) == 3
        holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while names & namespaces():
        assert time.monotonic() < deadline, "namespaces are left"
        time.sleep(0.05)
