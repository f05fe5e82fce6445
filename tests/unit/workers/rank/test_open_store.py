from __future__ import annotations

import logging

import pytest
from torch._C._distributed_c10d import HashStore

from bundlerun.launcher.errors import NodeError
from bundlerun.workers.rank import session
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.open_store import wait_for_name


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
    monkeypatch.setattr(session, "_NAME_POLL_S", 0.0)
    answers = iter([OSError(-3, "Temporary failure in name resolution"), None])

    def late(*_: object) -> None:
        answer = next(answers)
        if answer is not None:
            raise answer

    wait_for_name("node-0", 30.0, resolve=late)
    assert next(answers, "all asked") == "all asked"


def test_one_rank_of_a_node_tells_the_gpus_of_all_as_each_sees_its_own() -> None:
    store = HashStore()
    for rank, gpu in enumerate(["a", "b", "c", "d"]):
        store.set(f"gpu/{rank}", gpu)
    second = [node_rank(local_rank, first=2) for local_rank in range(2)]
    assert [session._gpus_of_node(env, store) for env in second] == [(), ("c", "d")]


def node_rank(local_rank: int, first: int) -> RankEnv:
    return RankEnv.from_mapping(
        {
            "RANK": str(first + local_rank),
            "WORLD_SIZE": "4",
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "1",
            "GROUP_WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "1",
        }
    )
