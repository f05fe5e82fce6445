"""Whoever dies or freezes at one end of a link ends the other end in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.distributed import Store, Work

from bundlerun.workers.pipeline import slots
from bundlerun.workers.pipeline.links import InLink, OutLink
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import outcomes
from tests.ranks.pipeline.test_links import BOTH, EVAL, TRAIN, link_group
from tests.waiting import wait_until

T = TypeVar("T")
NUM_BYTES = 16 << 20
"""Many chunks of gloo."""
COUNT = 6
LIMIT_S = 3.0
KILLED = f"wait status {int(signal.SIGKILL)}"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ends(
    sender: Callable[[OutLink], None], receiver: Callable[[InLink], None], shares: bool
) -> Callable[[RankEnv, Store], None]:
    """What two ranks do, with little patience."""

    def main(env: RankEnv, store: Store) -> None:
        group = link_group(env, store, shares, timeout_s=LIMIT_S)
        if env.rank == 0:
            sender(OutLink(group, tells_specs=True, max_ahead=2))
        else:
            link = InLink(group, torch.device("cpu"), is_told_specs=True)
            link.expect([EVAL] * COUNT)
            receiver(link)

    return main


def send_all(out: OutLink) -> None:
    for _ in range(COUNT):
        out.send(EVAL, [torch.zeros(NUM_BYTES, dtype=torch.uint8)])


def receive_all(link: InLink) -> None:
    for _ in range(COUNT):
        link.receive()


def die_inside(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """Lets a rank die in the middle of a message: of `send` or `receive`, by gloo or memory."""
    honest, honest_tensor = getattr(Group, operation), slots._tensor

    def operate_and_die(self: Group, tensor: Tensor, peer: int) -> list[Work]:
        works: list[Work] = honest(self, tensor, peer)
        if len(works) > 1:
            works[0].wait()
            die()
        return works

    def make_and_die(memory: object, shape: Sequence[int], *rest: object) -> Tensor:
        if NUM_BYTES in shape:
            die()
        return honest_tensor(memory, shape, *rest)

    monkeypatch.setattr(Group, operation, operate_and_die)
    monkeypatch.setattr(slots, "_tensor", make_and_die)


def error_of_end(shares: bool) -> str:
    """What the other end says of one that has died: ours of memory, torch's of gloo."""
    return "PeerGoneError" if shares else "RuntimeError"


@BOTH
def test_a_sender_that_is_killed_in_mid_message_ends_the_receiver(
    shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(out: OutLink) -> None:
        die_inside(monkeypatch, "send")
        send_all(out)

    start = time.monotonic()
    found = outcomes((2,), ends(send, receive_all, shares), tmp_path, 30)
    assert found[0] == KILLED
    assert error_of_end(shares) in found[1]
    assert ("rank 0 on this node is gone" in found[1]) == shares
    assert time.monotonic() - start < 3 * LIMIT_S


@BOTH
def test_a_receiver_that_is_killed_in_mid_message_ends_the_sender(
    shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(link: InLink) -> None:
        die_inside(monkeypatch, "receive")
        receive_all(link)

    start = time.monotonic()
    found = outcomes((2,), ends(send_all, receive, shares), tmp_path, 30)
    assert found[1] == KILLED
    assert error_of_end(shares) in found[0]
    assert ("rank 1 on this node is gone" in found[0]) == shares
    assert time.monotonic() - start < 3 * LIMIT_S


@BOTH
def test_a_sender_hears_of_a_receivers_death_at_a_later_send(shares: bool, tmp_path: Path) -> None:
    """In training it waits for nobody, and must not go on for ever."""

    def send(out: OutLink) -> None:
        deadline = time.monotonic() + 3 * LIMIT_S
        while time.monotonic() < deadline:
            out.send(TRAIN, [torch.zeros(1 << 16)])
            time.sleep(0.02)

    found = outcomes((2,), ends(send, lambda _: die(), shares), tmp_path, 30)
    assert found[1] == KILLED
    assert error_of_end(shares) in found[0]


@BOTH
@pytest.mark.parametrize("frozen", [0, 1], ids=["sender", "receiver"])
def test_an_end_that_is_frozen_ends_the_other_in_time(
    frozen: int, shares: bool, tmp_path: Path
) -> None:
    ended = tmp_path / "ended"

    def freeze(_: object) -> None:
        wait_until(ended.exists, "the other end waits for ever")

    def act(way: Callable[[T], None], end: T) -> None:
        with pytest.raises(RuntimeError, match=r"(?i)did not answer in 3|timed out"):
            way(end)
        ended.touch()

    main = ends(
        freeze if frozen == 0 else partial(act, send_all),
        freeze if frozen == 1 else partial(act, receive_all),
        shares,
    )
    assert not outcomes((2,), main, tmp_path, 30)
