"""A stream that says its state is read on from there, unless its state leaves something out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.streams.places import NUM_COMPARED, Place, Places

NUM = 300


class Stateful:
    """Numbers in an order of their own for each epoch; knows how many it has given."""

    def __init__(self) -> None:
        self._epoch, self._at, self._starts_at = 0, 0, 0
        self.told: list[int] = []
        """Shared by copies, as a log is."""

    def __deepcopy__(self, _: object) -> Stateful:
        other = type(self)()
        other.told = self.told
        return other

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return NUM

    def __iter__(self) -> Iterator[tuple[float, int]]:
        order = random.Random(self._epoch).sample(range(NUM), NUM)
        for at in range(self._starts_at, NUM):
            self.told.append(order[at])
            self._at = at + 1
            # An augmentation.
            yield float(torch.rand(())), order[at]

    def state_dict(self) -> Any:
        return {"at": self._at}

    def load_state_dict(self, state: Any) -> None:
        self._starts_at = state["at"]


class Buffered(Stateful):
    """Shuffles in a buffer, and leaves that out of its state."""

    def __iter__(self) -> Iterator[tuple[float, int]]:
        buffer: list[Any] = []
        draws = random.Random(self._epoch)
        for sample in super().__iter__():
            buffer.append(sample)
            if len(buffer) == 20:
                yield buffer.pop(draws.randrange(20))
        yield from buffer


class Opaque(Stateful):
    """Its state is nothing that JSON can say."""

    def state_dict(self) -> Any:
        return {1: self._at}


class Failing(Stateful):
    def load_state_dict(self, state: Any) -> None:
        raise RuntimeError("of another version")


def read(
    stream: Stateful, run_dir: Path, first: int, epoch: int = 2, looks_at: int = 0
) -> list[torch.Tensor]:
    """The samples of an epoch from one on, once the first `looks_at` have been looked at."""
    config = TrainConfig(data="x", run_dir=str(run_dir))
    microbatches = [[n] for n in range(first, NUM)]
    with closing(MicrobatchLoader(stream, config=config, num_workers=0)) as loader:
        list(loader.batches([[n] for n in range(looks_at)], epoch=epoch))
        batches = list(loader.batches(microbatches, epoch=epoch))
    return [torch.cat([b.inputs[0].double(), b.target.double()]) for b in batches]


@pytest.mark.parametrize("looks_at", [0, 3])
@pytest.mark.parametrize(
    ("kind", "num_files", "is_taken_up"),
    [(Stateful, 4, True), (Buffered, 4, False), (Failing, 4, False), (Opaque, 0, False)],
)
def test_a_pass_goes_on_as_it_was_from_a_state_that_is_whole(
    kind: type[Stateful], num_files: int, is_taken_up: bool, looks_at: int, tmp_path: Path
) -> None:
    whole = read(kind(), tmp_path, 0)
    folder = RunPaths(tmp_path).stream_places
    assert len(list(folder.iterdir()) if folder.exists() else []) == num_files
    stream = kind()
    found = read(stream, tmp_path, 250, looks_at=looks_at)
    assert torch.equal(torch.stack(found), torch.stack(whole[250:]))
    # From 192 on; those that were compared are read twice.
    assert (len(stream.told) == looks_at + NUM_COMPARED + NUM - 192) == is_taken_up
    assert is_taken_up or len(stream.told) >= NUM


def test_what_follows_a_pass_that_was_taken_up_begins_at_the_beginning(tmp_path: Path) -> None:
    wanted = read(Stateful(), tmp_path / "other", 0, epoch=3)
    read(Stateful(), tmp_path, 0)
    config = TrainConfig(data="x", run_dir=str(tmp_path))
    with closing(MicrobatchLoader(Stateful(), config=config, num_workers=0)) as loader:
        list(loader.batches([[250]], epoch=2))
        found = list(loader.batches([[n] for n in range(NUM)], epoch=3))
    assert [int(b.target) for b in found] == [int(each[1]) for each in wanted]


@pytest.mark.parametrize(
    ("damage", "num_read"),
    [
        (lambda text: text[:-9], NUM_COMPARED + NUM - 192),
        (lambda text: text.replace('"at": 256', '"at": 255'), NUM_COMPARED + NUM),
    ],
    ids=["no JSON", "a state of another stream"],
)
def test_a_damaged_file_and_a_state_that_leads_elsewhere_are_passed_over(
    damage: Callable[[str], str], num_read: int, tmp_path: Path
) -> None:
    wanted = read(Stateful(), tmp_path, 0)
    (path,) = RunPaths(tmp_path).stream_places.glob("*-256.json")
    path.write_text(damage(path.read_text()))
    stream = Stateful()
    assert torch.equal(torch.stack(read(stream, tmp_path, 260)), torch.stack(wanted[260:]))
    assert len(stream.told) == num_read


def test_places_are_few_and_go_with_their_epochs(tmp_path: Path) -> None:
    places = Places(tmp_path, 0, 100_000)
    assert [n for n in range(100_001) if places.is_due(0, n)] == list(range(1000, 100_000, 1000))
    for epoch in range(3):
        places.keep(Place(epoch, 1000, {"at": 1}, ["a"]))
        Places(tmp_path, 1, 100_000).keep(Place(epoch, 1000, {"at": 1}, ["a"]))
    assert not places.is_due(2, 1000)
    places.forget_before(2)
    assert list(places.before(1, 5000)) == []
    assert list(places.before(2, 999)) == []
    assert list(places.before(2, 1000)) == [Place(2, 1000, {"at": 1}, ["a"])]
    assert len(list(tmp_path.iterdir())) == 4
    nowhere = Places(tmp_path / "file" / "x", 0, 100)
    (tmp_path / "file").touch()
    nowhere.keep(Place(0, 64, {}, []))
    assert list(nowhere.before(0, 99)) == []
