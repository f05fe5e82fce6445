"""A mistake that a GPU forgives on most days is noticed on the stand-in, each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store

from bundlerun.workers.device import accelerator
from bundlerun.workers.pipeline import nccl
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.gradient_sync import GradientSync
from bundlerun.workers.sync.rank_sync import RankSync
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.pipeline.test_schedules import scheduled
from tests.ranks.standin.test_training import ONCE, SHORT
from tests.ranks.tied_model import CUTS
from tests.ranks.training.test_shared import TIED
from tests.standin.device import Device
from tests.standin.ranks import attach, on_standin

GPU = "standin"  # a name that torch learns in the ranks
Plant = Callable[[RankEnv, pytest.MonkeyPatch], None]


def gpu() -> torch.device:
    return torch.device(GPU, 0)


def told(
    plant: Plant, nodes: tuple[int, ...], shape: tuple[int, ...], folder: Path, **changes: Any
) -> str:
    """What is said of a run in which a mistake was planted."""
    config = replace(scheduled(SHORT, shape, ONCE), transport="nccl", sync="flat", timeout_s=10.0)
    config = replace(config, verify_replicas=False, run_dir=str(folder / "run"), **changes)

    def main(env: RankEnv, store: Store, device: Device) -> None:
        plant(env, pytest.MonkeyPatch())
        try:
            train(config, env, store)
        finally:
            device.record.check()

    return "\n".join(outcomes(nodes, on_standin(main), folder, timeout_s=100).values())


def test_a_missing_wait_for_a_stream_is_noticed(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Bucket, "wait_ready", lambda self: None)

    found = told(plant, (2,), (1,), tmp_path)
    assert "no wait_event" in found
    assert "reads memory that stream 0 writes" in found  # the backward, and the sum


def test_a_received_message_that_nobody_waits_for_is_noticed(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(nccl.NcclReceiver, "_arrived", lambda self, buffers, works: buffers)

    # The first message of all is one of the form, which is read at once.
    assert "no wait_event: copy" in told(plant, (2,), (1, 1), tmp_path)


def test_what_stages_share_summed_first_is_noticed(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        def arm(self: RankSync, own_chunk: int) -> None:
            self.shared[0].sync.finish()
            self._own.arm(own_chunk)

        if env.rank == 0:  # before its last backward, and not at its end
            patch.setattr(RankSync, "arm", arm)
            patch.setattr(RankSync, "finish", lambda self: self._own.finish())

    changes = {"model": TIED.model, "cut": CUTS[2], "sync": "local-master"}
    found = told(plant, (2, 2), (1, 1), tmp_path, **changes)
    # Of one or the other: each has a thread.
    assert "of exchange0/stage0" in found
    assert "they have begun other collectives in another order" in found


def test_memory_that_another_stream_still_uses_is_noticed(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(accelerator, "used_by", lambda tensor, stream: None)

    assert "no record_stream" in told(plant, (2,), (1, 1), tmp_path)


def test_a_receive_before_what_it_waits_for_is_noticed(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(nccl.NcclReceiver, "posts_ahead", 2)

    assert "early receive" in told(plant, (2,), (1, 1), tmp_path)


def test_another_order_on_one_rank_is_noticed(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        copy = GradientSync.copy_from_first

        def by_dtype(self: GradientSync, tensors: list[Tensor]) -> None:
            copy(self, sorted(tensors, key=lambda t: t.is_floating_point()))

        if env.rank:
            patch.setattr(GradientSync, "copy_from_first", by_dtype)

    assert "another order" in told(plant, (2,), (1,), tmp_path)


def test_a_tensor_of_the_cpu_in_a_collective_is_refused(tmp_path: Path) -> None:
    def plant(env: RankEnv, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(accelerator, "placed", lambda tensor, device: tensor)

    assert "Tensors must be CUDA and dense" in told(plant, (2,), (1, 1), tmp_path)


def group_of(env: RankEnv, store: Store, name: str) -> Group:
    network = Network(
        store=PrefixStore(name, store), rank=env.rank, backend="nccl", timeout_s=10, device=gpu()
    )
    return Group(network, name, range(env.world_size), "nccl")


def test_two_ranks_of_one_device_are_refused_unless_they_may(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store, device: Device) -> None:
        device.name = "one for all"
        group = group_of(env, store, "refused")
        group.all_reduce(torch.ones(3, device=GPU)).wait()
        with pytest.raises(RuntimeError, match="Duplicate GPU"):
            accelerator.finish(gpu())
        assert [fault.kind for fault in device.record.faults] == ["two ranks of one device"]
        device.record.faults.clear()
        device.engine.failure = None
        attach(device, may_share=True)
        ones = torch.ones(3, device=GPU)
        group_of(env, store, "shared").all_reduce(ones).wait()
        assert ones.tolist() == [2.0] * 3

    run_ranks((2,), on_standin(main), tmp_path)


def test_another_order_of_two_groups_is_noticed(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store, device: Device) -> None:
        groups = [group_of(env, store, name) for name in ("first", "second")]
        for group in groups if env.rank else reversed(groups):
            group.all_reduce(torch.ones(3, device=GPU)).wait()
        with pytest.raises(RuntimeError, match="in another order"):
            accelerator.finish(gpu())
        assert {fault.kind for fault in device.record.faults} == {"another order"}
        device.record.planted.add("another order")

    run_ranks((2,), on_standin(main), tmp_path)


def alone(act: Callable[[Device], Any], folder: Path) -> None:
    def main(env: RankEnv, store: Store, device: Device) -> None:
        act(device)

    run_ranks((1,), on_standin(main), folder)


def test_what_was_not_waited_for_is_wrong_as_well(tmp_path: Path) -> None:
    """The numbers show it, for whoever looks at no list of faults."""

    def doubled(waits: bool) -> Tensor:
        tensor = torch.ones(4, device=GPU) * 3
        event = accelerator.mark(gpu())
        with accelerator.on_stream(gpu(), "copy out"):
            if waits:
                accelerator.current_stream(gpu()).wait_event(event)
            found = tensor * 2
            accelerator.used_by(tensor, accelerator.current_stream(gpu()))
            return found.cpu()

    def act(device: Device) -> None:
        assert doubled(waits=True).tolist() == [6.0] * 4
        device.record.check()
        assert doubled(waits=False).isnan().all()
        assert {fault.kind for fault in device.record.faults} == {"no wait_event"}
        device.record.faults.clear()

    alone(act, tmp_path)


def test_memory_given_back_too_early_is_poisoned(tmp_path: Path) -> None:
    def summed(is_told: bool) -> float:
        tensor = torch.ones(4, device=GPU)
        event = accelerator.mark(gpu())
        with accelerator.on_stream(gpu(), "link"):
            accelerator.current_stream(gpu()).wait_event(event)
            total = tensor.sum()
            if is_told:
                accelerator.used_by(tensor, accelerator.current_stream(gpu()))
        del tensor
        torch.ones(4, device=GPU)
        with accelerator.on_stream(gpu(), "link"):
            return total.item()

    def act(device: Device) -> None:
        assert summed(is_told=True) == 4.0
        device.record.check()
        assert summed(is_told=False) != 4.0
        assert {fault.kind for fault in device.record.faults} == {"no record_stream"}
        device.record.faults.clear()

    alone(act, tmp_path)


def test_memory_that_was_waited_for_needs_no_telling(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        tensor = torch.ones(4, device=GPU)
        before = accelerator.mark(gpu())
        with accelerator.on_stream(gpu(), "link"):
            accelerator.current_stream(gpu()).wait_event(before)
            total = tensor.sum()
            after = accelerator.mark(gpu())
        accelerator.current_stream(gpu()).wait_event(after)
        del tensor
        assert total.item() == 4.0

    alone(act, tmp_path)
