from __future__ import annotations

import logging

import pytest

from bundlerun.launcher.errors import NodeError
from bundlerun.workers.rank.arrival import open_store
from bundlerun.workers.rank.arrival.open_store import wait_for_name


def test_a_name_that_has_no_address_is_one_line_within_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(-2, "Name or service not known")

    with caplog.at_level(logging.WARNING), pytest.raises(NodeError) as caught:
        wait_for_name("no-such-node", 0.05, resolve=unknown)
    text = "MASTER_ADDR 'no-such-node' cannot be resolved: Name or service not known; set it to"
    assert str(caught.value).startswith(text)
    assert caplog.text.count("waiting up to 0.05 s") == 1


def test_a_name_server_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_store, "_NAME_POLL_S", 0.0)
    answers = iter([OSError(-3, "Temporary failure in name resolution"), None])

    def late(*_: object) -> None:
        answer = next(answers)
        if answer is not None:
            raise answer

    wait_for_name("node-0", 30.0, resolve=late)
    assert next(answers, "all asked") == "all asked"
