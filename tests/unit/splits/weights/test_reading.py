"""Weights in files of all kinds, read tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.weight_files import find_weights
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.weights.loading import Initial
from bundlerun.splits.weights.reading import Piece, Weights, open_weights
from bundlerun.workers.state.checkpoint import Checkpoints

STATE = {
    "a.weight": torch.arange(12.0).view(6, 2),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(5),
}


def opened(path: Path) -> Weights:
    return open_weights(find_weights(str(path)))


def assert_has_state(weights: Weights, state: dict[str, Tensor] = STATE) -> None:
    assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        assert torch.equal(weights.read(Piece(name)), tensor)
        if tensor.dim() and tensor.size(0) % 3 == 0:
            assert torch.equal(weights.read(Piece(name, 1, 3)), tensor.chunk(3)[1])


def test_safetensors_in_one_file_and_in_several(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "one.safetensors")
    assert_has_state(opened(tmp_path / "one.safetensors"))
    folder = tmp_path / "sharded"
    folder.mkdir()
    for number, name in enumerate(STATE):
        save_file({name: STATE[name]}, folder / f"{number}.safetensors")
    index = {"weight_map": {name: f"{n}.safetensors" for n, name in enumerate(STATE)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_has_state(opened(folder))


@pytest.mark.parametrize(
    "around",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "optimizer": {"state": {"x": torch.ones(1)}}, "model": state},
        lambda state: {"state_dict": state, "best": 1.0, "arch": "net"},
        lambda state: {"whole": {"network": state}, "step": 1},
    ],
)
def test_files_of_torch_whatever_is_around_the_weights(around: Any, tmp_path: Path) -> None:
    for name, options in (("w.pth", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        torch.save(around(STATE), tmp_path / name, **options)
        assert_has_state(opened(tmp_path / name))


def test_the_newest_checkpoint_of_a_run_and_a_certain_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(RunPaths(tmp_path), keep=3)
    states = {}
    for step in (1, 2):
        states[step] = {
            "a.weight": torch.full((6, 2), float(step)), "c": torch.full((2,), 1j * step)
        }  # fmt: skip
        whole = {f"model.{name}": tensor for name, tensor in states[step].items()}
        whole["optimizer.a.weight.momentum"] = torch.zeros(6, 2)
        part = checkpoints.write_part(step, "stage-0", whole)
        progress = Progress(step=step, epoch=0, step_in_epoch=step, samples_seen=step)
        checkpoints.commit(step, [part], progress)
    assert_has_state(opened(tmp_path), states[2])
    folder = RunPaths(tmp_path).checkpoint(1)
    assert_has_state(opened(folder), states[1])
    with (folder / "stage-0.safetensors").open("rb+") as file:
        file.seek(-4, 2)
        file.write(b"xxxx")
    with pytest.raises(ConfigError, match=r"is damaged: stage-0.safetensors does not match its ch"):
        opened(folder).read(Piece("c"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"no", r"w.safetensors cannot be read \(.*\); is it whole"),
        ("w.pth", b"no", r"w.pth (cannot be read|holds more than tensors)"),
    ],
)
def test_what_cannot_be_read_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path / name)


def test_a_pickled_model_is_not_loaded(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"holds more than tensors .*save model.state_dict\(\)"):
        opened(tmp_path / "w.pth")
    torch.save({"epoch": 1, "loss": 0.5}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds no weights by name, but epoch, loss"):
        opened(tmp_path / "w.pth")


def test_a_stage_reads_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    save_file(nn.Sequential(*model).state_dict(), tmp_path / "model.safetensors")
    begin = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    found = Initial(begin, str(tmp_path), "it", num_outputs=1, new_head="auto")
    rear = nn.Module()
    rear.add_module("2", begin[2])
    read: list[str] = []
    read_one = found._weights.read

    def noted(piece: Piece) -> Tensor:
        read.append(piece.name)
        return read_one(piece)

    monkeypatch.setattr(found._weights, "read", noted)
    found.load(rear)
    assert read == ["2.weight", "2.bias"]
    assert torch.equal(begin[2].weight, model[2].weight)
    assert not torch.equal(begin[0].weight, model[0].weight)
