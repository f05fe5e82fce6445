"""torch on the stand-in: the CPU's numbers, late."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import Store

from bundlerun.workers.device import accelerator, host_memory
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import run_ranks
from tests.ranks.tiny_model import build
from tests.standin.device import Device
from tests.standin.ranks import on_standin

GPU = "standin"
ROOT = Path(__file__).parents[3]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def alone(act: Callable[[Device], None], folder: Path, *, seed: int | None = None) -> None:
    """Does something in a process that has the stand-in."""

    def main(env: RankEnv, store: Store, device: Device) -> None:
        act(device)

    run_ranks((1,), on_standin(main, seed=seed), folder)


def trained(model: nn.Module, inputs: Tensor, kind: str) -> list[Tensor]:
    """What three steps leave, on the CPU."""
    optimizer = OPTIMIZERS[kind](model.parameters())
    target = torch.arange(4, device=inputs.device)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return [t.cpu() for t in model.state_dict().values()]


@pytest.mark.parametrize("seed", [None, 1])
def test_training_has_the_bits_of_the_cpu(seed: int | None, tmp_path: Path) -> None:
    def act(device: Device) -> None:
        for kind in OPTIMIZERS:
            torch.manual_seed(0)
            model, same = build(5), build(5).to(GPU)
            same.load_state_dict(model.state_dict())
            inputs = torch.randn(4, 3, 8, 8)
            wanted = trained(model, inputs, kind)
            found = trained(same, inputs.to(GPU), kind)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), kind

    alone(act, tmp_path, seed=seed)


def test_a_device_is_found_and_does_nothing_before_somebody_waits(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        assert accelerator.own_device(0) == torch.device(GPU, 0)
        source = torch.full((4,), 2.0).pin_memory()
        on_gpu = source.to(GPU, non_blocking=True)
        doubled = on_gpu * 2
        assert doubled.device == torch.device(GPU, 0)
        assert doubled.shape == (4,)
        assert not device.record.waits
        source.fill_(5.0)  # too early: a copy under way reads it late
        assert doubled.tolist() == [10.0] * 4
        assert sum(device.record.waits.values()) == 1

    alone(act, tmp_path)


def test_views_share_memory_and_memory_comes_back(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        before = device.memory.held_bytes
        whole = torch.zeros(4, 6, device=GPU)
        whole[1:3].transpose(0, 1)[2] = 7.0
        assert whole.sum().item() == 14.0
        assert whole.view(-1).chunk(2)[0].shape == (12,)
        kept = whole[0]
        del whole
        assert device.memory.held_bytes >= before + 96
        del kept
        assert device.memory.held_bytes == before

    alone(act, tmp_path)


def test_new_memory_is_not_a_number(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            assert torch.empty(3, dtype=dtype, device=GPU).isnan().all().item()
        assert torch.empty(3, pin_memory=True).isnan().all()

    alone(act, tmp_path)


def test_what_makes_the_process_wait_is_counted(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        tensor, target = torch.arange(6.0, device=GPU), torch.empty(6)
        pinned = host_memory.pinned((6,), torch.float32)
        late = [
            lambda: pinned.copy_(tensor, non_blocking=True),
            lambda: tensor.to(torch.float64),
            lambda: tensor.copy_(target, non_blocking=True),
            lambda: tensor.add_(1).mul_(tensor),
            lambda: tensor.to("cpu", non_blocking=True),
        ]
        waiting = [
            lambda: tensor.sum().item(),
            lambda: bool(tensor[0] > 0),
            lambda: tensor.tolist(),
            lambda: tensor.cpu(),
            lambda: target.copy_(tensor, non_blocking=True),
            lambda: pinned.copy_(tensor),
            lambda: torch.tensor([1.0], device=GPU),
            lambda: tensor.nonzero(),
            lambda: tensor[tensor > 2],
            lambda: torch.equal(tensor, tensor),
            lambda: accelerator.finish(tensor.device),
            lambda: accelerator.drain(tensor.device),
        ]
        for number, (act, count) in enumerate([(a, 0) for a in late] + [(a, 1) for a in waiting]):
            device.record.waits.clear()
            act()
            assert sum(device.record.waits.values()) == count, number

    alone(act, tmp_path)


def test_tensors_of_two_devices_do_not_mix_but_for_numbers(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        tensor = torch.ones(3, device=GPU)
        assert (tensor * torch.tensor(2.0)).tolist() == [2.0] * 3
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(3)

    alone(act, tmp_path)


def test_registered_memory_is_reached_by_the_device(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        memory = torch.zeros(64, dtype=torch.uint8)
        registration = host_memory.register(memory, torch.device(GPU))
        assert registration is not None
        part = memory[16:32].view(torch.float32)
        part.copy_(torch.ones(4, device=GPU), non_blocking=True)
        assert part.tolist() == [0.0] * 4  # under way
        accelerator.finish(torch.device(GPU))
        assert part.tolist() == [1.0] * 4
        registration.end()
        device.record.waits.clear()
        part.copy_(torch.ones(4, device=GPU), non_blocking=True)
        assert sum(device.record.waits.values()) == 1

    alone(act, tmp_path)


def test_random_numbers_depend_on_the_seed_and_not_on_when_they_are_drawn(tmp_path: Path) -> None:
    def draw() -> list[float]:
        torch.manual_seed(3)
        first = nn.functional.dropout(torch.ones(20, device=GPU)).cumsum(0)
        second = torch.rand(3, device=GPU)
        # The later one first.
        return [*second.tolist(), *first.tolist()]

    def act(device: Device) -> None:
        found = draw()
        assert found == draw()
        state = torch.get_device_module(GPU).get_rng_state(GPU)
        more = torch.rand(3, device=GPU).tolist()
        assert more != found[:3]
        torch.get_device_module(GPU).set_rng_state(state, GPU)
        assert torch.rand(3, device=GPU).tolist() == more
        assert all(0 <= number < 1 for number in more)

    alone(act, tmp_path)


def test_events_measure(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        gpu = torch.device(GPU, 0)
        start, end = accelerator.timer(gpu), accelerator.timer(gpu)
        start.record()
        (torch.ones(64, 64, device=GPU) @ torch.ones(64, 64, device=GPU)).sum()
        end.record()
        end.synchronize()
        assert start.elapsed_time(end) > 0

    alone(act, tmp_path)


def test_backwards_run_in_torchs_own_thread_where_the_process_was_not_forked() -> None:
    code = """
import threading
import torch
from tests.standin.install import install

device = install()
weight = torch.ones(3, device="standin", requires_grad=True)
threads = []
weight.register_hook(lambda gradient: threads.append(threading.get_ident()))
(weight * 2).sum().backward()
assert threads != [threading.get_ident()]
assert not device.record.waits
assert weight.grad.tolist() == [2.0] * 3
device.record.check()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_autocast_computes_products_in_the_lower_precision(tmp_path: Path) -> None:
    def act(device: Device) -> None:
        torch.manual_seed(0)
        layer, inputs = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
        same = nn.Conv2d(3, 4, 3).to(GPU)
        same.load_state_dict(layer.state_dict())
        target = torch.tensor([0, 1])

        def gradient(model: nn.Module, kind: str) -> Tensor:
            with torch.autocast(kind, torch.bfloat16):
                output = model(inputs.to(kind)).mean((2, 3))
                assert output.dtype == torch.bfloat16
                loss = nn.functional.cross_entropy(output, target.to(kind))
            assert loss.dtype == torch.float32
            loss.backward()
            assert model.weight.grad is not None
            return model.weight.grad.cpu()

        assert torch.allclose(gradient(same, GPU), gradient(layer, "cpu"), rtol=0.05, atol=1e-3)

    alone(act, tmp_path)
