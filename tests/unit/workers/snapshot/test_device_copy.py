from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch.distributed import Store

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device import host_memory
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.piece import Label, Layout, Spec
from bundlerun.workers.snapshot.slot import Slot, read_piece
from bundlerun.workers.snapshot.turns import Turns
from tests.ranks.harness import run_ranks

LABEL = Label(
    step=1,
    token="t",
    stage=0,
    num_stages=1,
    num_names=3,
    progress=Progress(step=1, epoch=0, step_in_epoch=1, samples_seen=1),
)


def check_copy(device: torch.device, path: Path) -> None:
    tensors = {
        "weight": torch.randn(1000, 700, device=device),
        "half": torch.randn(33, device=device).to(torch.bfloat16),
        "step": torch.tensor(3.0),  # optimizers keep it on the CPU
    }
    slot = Slot(path, Layout.of({name: Spec.of(tensor) for name, tensor in tensors.items()}))
    for _ in range(3):
        tensors["weight"] = tensors["weight"] @ torch.eye(700, device=device) + 1  # still going on
        copy = DeviceCopy.after_now(device)
        registered = copy.prepare(slot)
        copy.write(slot, LABEL, tensors)
        found = read_piece(path)
        assert found is not None
        assert all(torch.equal(found.tensor(name), tensors[name].cpu()) for name in tensors)
        if registered is not None:
            registered.end()


def test_tensors_in_cpu_memory_are_copied(tmp_path: Path) -> None:
    check_copy(torch.device("cpu"), tmp_path / "p")


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_copied_as_they_were_when_the_optimizer_ended(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        device = door.own_device(0)
        assert door.is_gpu(device)
        check_copy(device, tmp_path / "p")  # on a disk, perhaps: not registered
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            check_copy(device, Path(folder) / "p")
        torch.zeros(1, device=device).fill_(1.0)  # the next kernel hears of no failure

    run_ranks((1,), main, tmp_path)


class _Room:
    """Makes slots in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make_slot(self, token: str, role: str, layout: Layout, *, num_slots: int) -> Slot:
        return Slot(self._folder / f"{token}-{role}", layout)


class _Registered:
    """Stands for memory that a GPU maps."""

    under_way = 0

    def __init__(self) -> None:
        _Registered.under_way += 1

    def end(self) -> None:
        _Registered.under_way -= 1


def test_slots_are_taken_back_from_the_gpu_when_replaced_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "register", lambda memory, device, *, file: _Registered())
    cpu = torch.device("cpu")
    turns = Turns(_Room(tmp_path), "t", "role", cpu)  # type: ignore[arg-type]
    for size in (3, 3, 3, 5, 5):  # another layout: new slots
        turns.write(LABEL, {"weight": torch.ones(size)}, DeviceCopy.after_now(cpu))
        assert _Registered.under_way <= 2
    assert _Registered.under_way == 2
    turns.close()
    turns.close()
    assert _Registered.under_way == 0
