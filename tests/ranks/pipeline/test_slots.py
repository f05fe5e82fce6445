"""Messages lie in shared memory for as long as somebody needs them, and no longer."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.errors import NodeError
from bundlerun.workers.pipeline import slots
from bundlerun.workers.pipeline.message import TensorSpec, specs_of
from bundlerun.workers.pipeline.slots import NUM_CHANNELS, SlotReceiver, SlotSender
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.node_memory import NodeMemory
from tests.ranks.harness import run_ranks
from tests.ranks.pipeline.test_links import link_group

LARGE = 300_000

Turn = Callable[[], None]
"""Returns when the other end has come here, too."""


def slot_ends(
    sender: Callable[[SlotSender, Turn], None], receiver: Callable[[SlotReceiver, Turn], None]
) -> Callable[[RankEnv, Store], None]:
    """What two ranks do: the first sends, the second receives."""

    def main(env: RankEnv, store: Store) -> None:
        group = link_group(env, store, shares=True)
        memory = NodeMemory.connect(group, 1, num_channels=NUM_CHANNELS)
        assert memory is not None
        if env.rank == 0:
            sender(SlotSender(memory), lambda: meet(group))
        else:
            receiver(SlotReceiver(memory), lambda: meet(group))
        meet(group)

    return main


def meet(group: Group) -> None:
    group.all_reduce(torch.zeros(1)).wait()


def numbered(number: int, size: int = LARGE) -> list[Tensor]:
    return [torch.full((size,), float(number)), torch.tensor([number])]


def test_a_slot_is_used_again_once_nobody_has_its_message(tmp_path: Path) -> None:
    def send(out: SlotSender, turn: Turn) -> None:
        for number in range(20):
            out.send(numbered(number))
            turn()
            assert len(out._slots) == 1
        out.send(numbered(20))
        out.send(numbered(21, LARGE // 2))
        turn()
        turn()
        assert len(out._slots) == 2
        for size in (LARGE // 2, LARGE, 1):  # each finds one that is large enough
            out.send(numbered(22, size))
            turn()
        assert len(out._slots) == 2

    def receive(link: SlotReceiver, turn: Turn) -> None:
        for number in range(20):
            found = link.post(specs_of(numbered(0)))()
            assert all((tensor == number).all() for tensor in found)
            del found
            turn()
        turn()  # both are on the way
        for size in (LARGE, LARGE // 2):
            link.post(specs_of(numbered(0, size)))()
        turn()
        for size in (LARGE // 2, LARGE, 1):
            (values, _) = link.post(specs_of(numbered(0, size)))()
            assert (values == 22).all()
            del values, _
            turn()

    run_ranks((2,), slot_ends(send, receive), tmp_path)


def test_what_autograd_keeps_is_not_overwritten(tmp_path: Path) -> None:
    count = 6

    def send(out: SlotSender, turn: Turn) -> None:
        for number in range(count):
            out.send(numbered(number))
        turn()  # the receiver has all of them in use
        assert len(out._slots) == count
        turn()  # and none any more
        for number in range(count):
            out.send(numbered(number))
        assert len(out._slots) == count
        turn()

    def receive(link: SlotReceiver, turn: Turn) -> None:
        def forward() -> tuple[Tensor, Tensor]:
            values, _ = link.post(specs_of(numbered(0)))()
            weight = torch.ones(1, requires_grad=True)
            return weight, (values.requires_grad_() * weight).mean()

        kept = [forward() for _ in range(count)]
        turn()
        while kept:
            weight, loss = kept.pop()
            loss.backward()
            assert weight.grad.item() == pytest.approx(len(kept))
        del weight, loss
        turn()
        for number in range(count):
            assert (link.post(specs_of(numbered(0)))()[0] == number).all()
        turn()

    run_ranks((2,), slot_ends(send, receive), tmp_path)


class Registered:
    """Stands for memory that a GPU reaches."""

    def __init__(self, log: list[tuple[str, int]], memory: Tensor) -> None:
        self._log, self._length = log, len(memory)
        log.append(("register", self._length))

    def end(self) -> None:
        self._log.append(("end", self._length))


def registering(log: list[tuple[str, int]]) -> Callable[[Tensor, torch.device], Registered]:
    return lambda memory, device: Registered(log, memory)


def test_a_gpu_at_each_end_reaches_each_slot_that_it_copies_to_or_from(tmp_path: Path) -> None:
    small, large = 4096, 12288
    log: list[tuple[str, int]] = []

    def lent(out: SlotSender, number: int, size: int) -> None:
        tensors = [torch.full((size,), number, dtype=torch.uint8)]
        slot, places = out.lend(specs_of(tensors))
        places[0].copy_(tensors[0])
        out.give(slot)

    def send(out: SlotSender, turn: Turn) -> None:
        slots.register = registering(log)
        out.send([torch.zeros(large, dtype=torch.uint8)])  # from the CPU, and not lent
        assert not log
        for number, size in enumerate((small, large, small)):
            turn()
            lent(out, number, size)
        turn()
        assert log == [("register", large)]

    def receive(link: SlotReceiver, turn: Turn) -> None:
        slots.register = registering(log)
        for number, size in ((0, large), (0, small), (1, large), (2, small)):
            found = link.post((TensorSpec((size,), torch.uint8, False, (1,)),))()
            assert (found[0] == number).all()
            del found
            turn()
        # The first message has mapped all of the slot already.
        assert log == [("register", large)]

    run_ranks((2,), slot_ends(send, receive), tmp_path)


def test_a_mapping_that_is_too_short_is_given_back_before_there_is_a_longer_one(
    tmp_path: Path,
) -> None:
    small, large = 4096, 12288
    log: list[tuple[str, int]] = []

    def send(out: SlotSender, turn: Turn) -> None:
        out.send([torch.zeros(large, dtype=torch.uint8)])
        turn()  # the receiver has mapped as much of the slot as it wants to read
        out.send([torch.ones(large, dtype=torch.uint8)])
        turn()

    def receive(link: SlotReceiver, turn: Turn) -> None:
        slots.register = registering(log)
        link.post((TensorSpec((small,), torch.uint8, False, (1,)),))()
        turn()
        found = link.post((TensorSpec((large,), torch.uint8, False, (1,)),))()
        assert (found[0] == 1).all()
        assert log == [("register", small), ("end", small), ("register", large)]
        turn()

    run_ranks((2,), slot_ends(send, receive), tmp_path)


def test_a_forked_process_does_not_give_slots_back(tmp_path: Path) -> None:
    def send(out: SlotSender, turn: Turn) -> None:
        out.send(numbered(1))
        turn()  # a child of the receiver has let its copy of the tensors go
        out.send(numbered(2))
        assert len(out._slots) == 2
        turn()

    def receive(link: SlotReceiver, turn: Turn) -> None:
        found = link.post(specs_of(numbered(1)))()
        pid = os.fork()
        if pid == 0:
            found.clear()
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        turn()
        link.post(specs_of(numbered(2)))()
        assert (found[0] == 1).all()
        turn()

    run_ranks((2,), slot_ends(send, receive), tmp_path)


def test_no_memory_left_is_said_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(out: SlotSender, turn: Turn) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
        with pytest.raises(NodeError, match="no memory for 2 MiB more between two stages"):
            out.send([torch.zeros(2 << 20, dtype=torch.uint8)])

    run_ranks((2,), slot_ends(send, lambda _link, _turn: None), tmp_path)
