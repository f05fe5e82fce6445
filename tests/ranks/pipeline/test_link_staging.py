"""Messages from and to a GPU: staged in CPU memory by threads, or by NCCL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.pipeline.device_slots import DeviceSlotSender
from bundlerun.workers.pipeline.links import InLink, OutLink
from bundlerun.workers.pipeline.transports import StagedReceiver, StagedSender
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import run_ranks
from tests.ranks.pipeline.test_links import (
    BOTH,
    TRAIN,
    assert_message,
    link_ends,
    message,
    unstaged,
)


class _Staging:
    """Stands for the GPU's copies: they are done only when somebody waits for them."""

    class _Event:
        num_waited = 0

        def synchronize(self) -> None:
            type(self).num_waited += 1

    def mark(self) -> _Event:
        return self._Event()

    def copy_out(self, tensors: Sequence[Tensor], ready: _Event) -> tuple[list[Tensor], _Event]:
        return [t.clone(memory_format=torch.contiguous_format) for t in tensors], self._Event()

    def copy_into(
        self, places: Sequence[Tensor], tensors: Sequence[Tensor], ready: _Event
    ) -> _Event:
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        return self._Event()

    def copy_in(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.clone() for t in tensors]

    def use(self, copies: list[Tensor]) -> list[Tensor]:
        return copies


@BOTH
def test_messages_staged_for_a_gpu_stay_in_order(shares: bool, tmp_path: Path) -> None:
    count = 20

    def send(out: OutLink) -> None:
        out._sender = StagedSender(unstaged(out._sender), torch.device("cpu"))
        out.send(TRAIN, message(0))  # the spec goes before the first message from the GPU
        out._sender._staging = _Staging()
        for number in range(1, count):
            out.send(TRAIN, message(number))
        out.finish()
        assert _Staging._Event.num_waited == count - 1

    def receive(link: InLink) -> None:
        link._receiver = StagedReceiver(link._receiver, _Staging(), torch.device("cpu"))
        link.expect([TRAIN] * count)
        for number in range(count):
            assert_message(link.receive(), message(number))

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "carrier", ["memory", "ipc", "gloo", pytest.param("nccl", marks=pytest.mark.gpu(2))]
)
def test_messages_between_gpus_arrive_whole_and_in_order(carrier: str, tmp_path: Path) -> None:
    count = 20

    def main(env: RankEnv, store: Store) -> None:
        device = door.own_device(env.local_rank)
        backend = "nccl" if carrier == "nccl" else "gloo"
        network = Network(
            store=store,
            rank=env.rank,
            backend=backend,
            timeout_s=60,
            address="127.0.0.1",
            device=device,
            tries_ipc=carrier == "ipc",
        )
        both = Group(network, "both", (0, 1), "gloo")
        group = Group(network, "link", (0, 1), backend, is_one_node=carrier in ("memory", "ipc"))
        if env.rank == 0:
            out = OutLink(group, tells_specs=True)
            assert isinstance(out._sender, DeviceSlotSender) == (carrier == "ipc")
            for number in range(count):
                busy = torch.randn(2000, 2000, device=device) @ torch.ones(2000, 2000).to(device)
                late = [t.to(device) + 0 * busy[0, 0].to(t.dtype) for t in gpu_message(number)]
                out.send(TRAIN, late)
                del late  # its memory is used again while it is still to be sent
            out.finish()
        else:
            link = InLink(group, device, is_told_specs=True)
            link.expect([TRAIN] * count)
            for number in range(count):
                found = link.receive()
                assert all(t.device == device for t in found)
                for tensor, wanted in zip(found, gpu_message(number), strict=True):
                    assert torch.equal(tensor.cpu(), wanted)
        both.all_reduce(torch.zeros(1)).wait()
        group.close()

    run_ranks((2,), main, tmp_path, timeout_s=120)


def gpu_message(number: int) -> list[Tensor]:
    """Something long and something small."""
    return [torch.arange(1 << 18, dtype=torch.float32) + number, torch.tensor([number] * 3)]
