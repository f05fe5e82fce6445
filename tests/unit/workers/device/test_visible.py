"""What a rank is left of the GPUs of its node, with a stand-in for the driver."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundlerun.workers.device import visible


class Driver:
    """Shows what the variable says when it is asked for the first time, and that for good."""

    def __init__(self, environ: dict[str, str], present: int) -> None:
        self._environ = environ
        self._present = present
        self.shown: list[str] | None = None

    def wanted(self) -> list[str]:
        text = self._environ.get("CUDA_VISIBLE_DEVICES")
        names = [str(i) for i in range(self._present)] if text is None else text.split(",")
        return names[:1] if names[0].startswith("MIG-") else names

    def count(self) -> int:
        if self.shown is None:
            self.shown = self.wanted()
        return len(self.shown)


def driver_of(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, present: int = 4) -> Driver:
    driver = Driver(environ, present)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(driver.wanted()))
    monkeypatch.setattr(visible, "num_of_driver", driver.count)
    monkeypatch.setattr(visible, "may_be_started", lambda: driver.shown is not None)
    return driver


@pytest.mark.parametrize(
    ("text", "local_rank", "shown", "of_node"),
    [
        (None, 2, "2", "0,1,2,3"),
        (None, 5, "1", "0,1,2,3"),
        ("6,7", 1, "7", "6,7"),
        ("GPU-a", 0, "GPU-a", "GPU-a"),
        ("MIG-a,MIG-b", 1, "MIG-b", "MIG-a,MIG-b"),
    ],
)
def test_each_rank_sees_its_own_gpu_only(
    monkeypatch: pytest.MonkeyPatch, text: str | None, local_rank: int, shown: str, of_node: str
) -> None:
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    driver = driver_of(environ, monkeypatch)
    assert visible.show_only_own(local_rank, environ) == 0
    wanted = {"CUDA_VISIBLE_DEVICES": shown, "BUNDLERUN_NODE_GPUS": of_node}
    assert environ == wanted
    # Nobody has asked the driver, which takes its time: that is left to a thread.
    assert driver.shown is None
    assert driver.count() == 1
    assert driver.shown == [shown]
    # Once more, as from another thread: nothing changes.
    assert visible.show_only_own(local_rank, environ) == 0
    assert environ == wanted


@pytest.mark.parametrize("text", [None, "0,2,3"])
def test_where_cuda_was_asked_before_the_rank_finds_its_own_among_all(
    monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    before = dict(environ)
    driver = driver_of(environ, monkeypatch)
    driver.count()
    assert visible.show_only_own(2, environ) == 2
    assert environ == before


def test_without_gpus_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible.show_only_own(1, environ) == 0
    assert environ == {"CUDA_VISIBLE_DEVICES": ""}


def test_the_variable_of_amds_gpus_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"HIP_VISIBLE_DEVICES": "3,5"}
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(visible, "num_of_driver", lambda: 1)
    assert visible.show_only_own(1, environ) == 0
    assert environ["HIP_VISIBLE_DEVICES"] == "5"


def test_a_driver_that_nobody_has_asked_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not visible.may_be_started()  # though torch is, here
    maps = tmp_path / "maps"
    maps.write_text("7f0-7f1 r-xp 0 08:01 42    /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06\n")
    assert visible.may_be_started(maps)
    maps.write_text("7f0-7f1 r-xp 0 08:01 42    /site-packages/nvidia/cu13/lib/libcudart.so.13\n")
    assert not visible.may_be_started(maps)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert visible.may_be_started(maps)
