"""The two sides of the benchmark of loading load the same images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from benchmarks.machine import loader


def test_every_way_loads_the_last_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "NUM_IMAGES", 3)
    monkeypatch.setattr(loader, "MICROBATCH", 2)
    monkeypatch.setattr(loader, "SIZE", 32)
    assert loader.write_images(tmp_path) > 3 * 10_000
    with ExitStack() as stack:
        passes = loader.ways(tmp_path, stack)
        found = {name: load() for name, load in passes.items()}
        times = loader.measure(passes, 2)
    assert {tuple(images.shape) for images in found.values()} == {(1, 3, 32, 32)}
    whole = [name for name, images in found.items() if images.dtype is torch.uint8]
    assert whole == ["exact, uint8", loader.OURS]
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys(passes, 2)
