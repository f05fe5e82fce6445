"""The start of a device in a thread, with stand-ins for what it asks of the device."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping

import pytest
import torch

from bundlerun.launcher.errors import NodeError
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device import start
from bundlerun.workers.device.start import DeviceStart, load_libraries

LIMIT_S = 20.0
GPU = torch.device("cuda", 1)


def test_on_the_cpu_there_is_no_thread() -> None:
    before = threading.active_count()
    begun = DeviceStart(0, {"BUNDLERUN_CPU_ONLY": "1"})
    assert threading.active_count() == before
    assert begun.take() == torch.device("cpu")


class Entered:
    """In place of the door: which threads have entered the device, and what stops them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by: list[int] = []
        self.may_go = threading.Event()
        self.error: Exception | None = None
        monkeypatch.setattr(door, "chosen_device", self._choose)
        monkeypatch.setattr(door, "enter", self._enter)
        monkeypatch.setattr(start, "load_libraries", self._load)

    def _choose(self, local_rank: int, environ: MutableMapping[str, str]) -> torch.device:
        environ["chosen by"] = str(threading.get_ident())
        return GPU

    def _enter(self, device: torch.device) -> None:
        assert device == GPU
        self.by.append(threading.get_ident())

    def _load(self, device: torch.device) -> None:
        assert self.may_go.wait(LIMIT_S)
        if self.error is not None:
            raise self.error


def test_the_device_starts_in_a_thread_and_belongs_to_whoever_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, environ = Entered(monkeypatch), dict[str, str]()
    begun = DeviceStart(1, environ)
    own = threading.get_ident()
    # C code of the thread must not see the environment change.
    assert environ["chosen by"] == str(own)
    entered.may_go.set()
    assert begun.take() == GPU
    assert (len(entered.by), entered.by[0] != own, entered.by[1] == own) == (2, True, True)


def test_what_goes_wrong_in_the_thread_is_told_where_the_device_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered = Entered(monkeypatch)
    entered.error = RuntimeError("CUDA error: no kernel image\nCompile with ...")
    entered.may_go.set()
    begun = DeviceStart(1, {})
    with pytest.raises(NodeError, match=r"^cuda:1 cannot be started: CUDA error: no kernel image;"):
        begun.take()


def test_what_loads_the_libraries_is_what_torch_has_for_every_device() -> None:
    load_libraries(torch.device("cpu"))
