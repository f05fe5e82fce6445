"""The benchmark of shards loads the same images from each kind of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from benchmarks.machine import loader, shards


def test_every_kind_gives_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loader, shards):
        monkeypatch.setattr(module, "NUM_IMAGES", 3)
    monkeypatch.setattr(loader, "MICROBATCH", 2)
    monkeypatch.setattr(loader, "SIZE", 32)
    monkeypatch.setattr(shards, "NUM_LISTED", 5)
    with ExitStack() as stack:
        found = {name: load() for name, load in shards.ways(tmp_path, stack).items()}
    assert {shards.FOLDER, shards.TAR} <= set(found)
    assert all(torch.equal(images, found[shards.FOLDER]) for images in found.values())
    assert all(each > 0 for each in shards.listing(tmp_path))
    assert len(list((tmp_path / "kept").iterdir())) == 1
