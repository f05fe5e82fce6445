from __future__ import annotations

import errno
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.piece import Label, Layout, Spec
from bundlerun.workers.snapshot.slot import Slot, read_label, read_piece

LABEL = Label(
    step=7,
    token="abc",
    stage=1,
    num_stages=2,
    num_names=5,
    progress=Progress(step=7, epoch=1, step_in_epoch=2, samples_seen=700),
)
TENSORS = {
    "model.w": torch.randn(300, generator=torch.Generator().manual_seed(0)),
    "optimizer.w.step#int": torch.tensor(7),
}


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    return Layout.of({name: Spec.of(tensor) for name, tensor in tensors.items()})


def written(path: Path, label: Label = LABEL) -> Slot:
    slot = Slot(path, layout_of(TENSORS))
    slot.write(label, TENSORS)
    return slot


def test_a_piece_comes_back_as_it_was(tmp_path: Path) -> None:
    written(tmp_path / "p")
    found = read_piece(tmp_path / "p")
    assert found is not None
    assert found.label == LABEL
    assert list(found.layout.specs) == list(TENSORS)
    assert all(torch.equal(found.tensor(name), TENSORS[name]) for name in TENSORS)
    assert read_label(tmp_path / "p") == (LABEL, found.layout)


def test_a_slot_is_written_again_and_again(tmp_path: Path) -> None:
    slot = written(tmp_path / "p")
    later = replace(LABEL, step=10**9, progress=replace(LABEL.progress, samples_seen=10**15))
    slot.write(later, {name: tensor + 1 for name, tensor in TENSORS.items()})
    found = read_piece(tmp_path / "p")
    assert found is not None
    assert found.label == later
    assert torch.equal(found.tensor("model.w"), TENSORS["model.w"] + 1)


def with_metrics(length: int) -> Label:
    """The label of a step with sixteen metrics, by names of that length."""
    metrics = {f"{number:0{length}}": 0.0416666679084301 for number in range(16)}
    return replace(LABEL, progress=replace(LABEL.progress, row={"step": 7, "metrics": metrics}))


@pytest.mark.parametrize("num_tensors", range(60, 72))  # a page has 50 to 60 of them
def test_metrics_with_long_names_have_room(tmp_path: Path, num_tensors: int) -> None:
    tensors = {f"model.layer{i}.weight.and.such.names": torch.zeros(1) for i in range(num_tensors)}
    label = with_metrics(500)
    Slot(tmp_path / "p", layout_of(tensors)).write(label, tensors)
    found = read_piece(tmp_path / "p")
    assert found is not None
    assert found.label == label


def test_a_label_without_room_is_told_and_leaves_no_piece(tmp_path: Path) -> None:
    slot = written(tmp_path / "p")
    with pytest.raises(CheckpointError, match="of step 7 has no room in a snapshot"):
        slot.write(with_metrics(5000), TENSORS)
    assert read_piece(tmp_path / "p") is None


def test_a_piece_without_tensors_is_one_too(tmp_path: Path) -> None:
    Slot(tmp_path / "p", layout_of({})).write(LABEL, {})
    found = read_piece(tmp_path / "p")
    assert found is not None
    assert not found.layout.specs


def test_a_slot_that_is_being_written_has_nothing(tmp_path: Path) -> None:
    slot = written(tmp_path / "p")
    slot.open()
    assert read_piece(tmp_path / "p") is None
    assert read_label(tmp_path / "p") is None


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_never_gives_another_piece(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "p"
    written(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    found = read_piece(path)
    if found is not None:  # it was in a part that has no meaning
        assert found.label == LABEL
        assert all(torch.equal(found.tensor(name), TENSORS[name]) for name in TENSORS)


def test_every_byte_that_counts_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "p"
    slot = written(path)
    content = path.read_bytes()
    data_begin = len(content) - slot.layout.num_bytes
    text_end = content.index(b"\0", 64)
    for place in [*range(0, 48), *range(64, text_end), *range(data_begin, len(content), 7)]:
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        assert read_piece(path) is None, place


def test_a_thousand_damages_are_never_taken_for_good(tmp_path: Path) -> None:
    path = tmp_path / "p"
    data_bytes = written(path).layout.num_bytes
    content = path.read_bytes()
    data_begin, text_end = len(content) - data_bytes, content.index(b"\0", 64)
    parts = [range(text_end), range(text_end, data_begin), range(data_begin, len(content))]
    choices = random.Random(0)
    num_noticed = 0
    for number in range(1000):
        damaged = bytearray(content)
        place = choices.choice(choices.choice(parts))
        if number % 4 == 0:
            del damaged[place:]
        else:
            damaged[place] ^= choices.choice([255, 1 << choices.randrange(8)])
        path.write_bytes(damaged)
        found = read_piece(path)
        num_noticed += found is None
        if found is not None:  # it was in the padding
            assert found.label == LABEL
            assert all(torch.equal(found.tensor(name), TENSORS[name]) for name in TENSORS)
    assert num_noticed > 400


def test_a_truncated_file_has_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p"
    written(path)
    content = path.read_bytes()
    for length in [0, 1, 63, 64, 200, 4095, 4096, len(content) - 1]:
        path.write_bytes(content[:length])
        assert read_piece(path) is None, length
        assert length > 200 or read_label(path) is None


def test_a_file_of_zeros_or_none_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(bytes(10_000))
    assert read_piece(tmp_path / "p") is None
    assert read_piece(tmp_path / "q") is None
    assert read_piece(tmp_path) is None


def test_no_room_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Slot(tmp_path / "p", layout_of(TENSORS))
    assert not (tmp_path / "p").exists()


def test_a_slot_can_be_replaced_while_somebody_reads(tmp_path: Path) -> None:
    written(tmp_path / "p")
    found = read_piece(tmp_path / "p")
    written(tmp_path / "p", replace(LABEL, step=8))
    assert found is not None
    assert torch.equal(found.tensor("model.w"), TENSORS["model.w"])
    again = read_piece(tmp_path / "p")
    assert again is not None
    assert again.label.step == 8
