"""`bundlerun doctor` on three nodes with links of their own, of which some are bad."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.cluster.hosts import DEVICE, Hosts, Wire, open_hosts, why_not

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]
RATE, SLOW = 200, 20
NOBODY = "02:00:00:00:00:99"
LIMIT_S = 120.0


def inside(hosts: Hosts, host: int, *words: str) -> subprocess.Popen[str]:
    """A program on a host, with a host name of its own."""
    started: list[subprocess.Popen[str]] = []
    named = ["unshare", "--uts", "sh", "-c", f'hostname n{host}; exec "$@"', "sh", *words]

    def start() -> None:
        hosts.enter(host)  # of this thread only
        started.append(subprocess.Popen(named, stdout=subprocess.PIPE, text=True))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    return started[0]


def on(hosts: Hosts, host: int, *words: str) -> None:
    assert inside(hosts, host, *words).wait(LIMIT_S) == 0


def test_a_slow_link_and_a_blocked_direction_are_named(tmp_path: Path) -> None:
    with open_hosts(3, Wire(mbit_per_s=RATE)) as hosts:
        shaper = f"qdisc replace dev {DEVICE} root tbf rate {SLOW}mbit burst 36000 limit 4194304"
        on(hosts, 2, "tc", *shaper.split())
        # What n1 sends to n2 goes to a card that nobody has.
        on(hosts, 1, *f"ip neigh add {hosts.address(2)} lladdr {NOBODY} dev {DEVICE}".split())
        peers = ",".join(map(hosts.address, range(3)))
        doctor = (
            sys.executable,
            "-m",
            "bundlerun",
            "doctor",
            "--quick",
            "--json",
            "--peers",
            peers,
        )
        nodes = [
            inside(hosts, host, *doctor, "--run-dir", str(tmp_path / "r")) for host in range(3)
        ]
        outputs = [node.communicate(timeout=LIMIT_S)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [3, 3, 3]
    assert outputs[1:] == ["", ""]
    report = json.loads(outputs[0])
    assert [node["name"] for node in report["nodes"]] == ["n0", "n1", "n2"]
    bad = {each["subject"]: each for each in report["between"] if each["level"] != "ok"}
    # On a machine with other work, other links may be slow as well.
    assert bad.keys() >= {"n1 -> n2", "n2 -> n0"}
    assert [key for key, each in bad.items() if each["level"] == "error"] == ["n1 -> n2"]
    assert bad["n1 -> n2"]["text"] == "packets from n1 to n2 are dropped; those from n2 arrive"
    assert bad["n2 -> n0"]["text"].startswith("slow: ")
    rates = {
        (link["source"], link["target"]): link["bytes_per_s"] * 8 / 1e6
        for link in report["links"]
        if link["bytes_per_s"]
    }
    assert len(rates) == 4
    assert rates["n2", "n0"] < 1.1 * SLOW
    assert max(rates.values()) < 1.1 * RATE
    (shared,) = (each for each in report["between"] if each["subject"] == "shared folder")
    assert shared["level"] == "ok"
    assert list(tmp_path.iterdir()) == []
