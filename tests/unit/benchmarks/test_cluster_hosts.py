"""Hosts that cannot all be made leave nothing open."""

from __future__ import annotations

import os

import pytest

from benchmarks.cluster import hosts
from benchmarks.cluster.hosts import Wire, open_hosts


def test_hosts_that_cannot_all_be_made_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def new_namespace() -> int:
        if len(made) == 3:
            raise OSError("no more of them")
        made.append(os.open(os.devnull, os.O_RDONLY))
        return made[-1]

    monkeypatch.setattr(hosts, "_new_namespace", new_namespace)
    monkeypatch.setattr(hosts, "_batch", lambda *_: None)
    with pytest.raises(OSError, match="no more of them"), open_hosts(3, Wire(mbit_per_s=1)):
        pass
    for descriptor in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
