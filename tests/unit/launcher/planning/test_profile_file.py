"""A profile is read again as it was, and ignored where it is of something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    SharedParameters,
    UpdateCosts,
)

KEY = ProfileKey(
    model="--model resnet18, --image-size 64", device="cpu, 1 thread", versions="1, torch 2",
    precision="float32",
)  # fmt: skip
PROFILE = Profile(
    key=KEY,
    by_samples=(
        ModelCosts(
            samples=8,
            pieces=(Piece(forward_s=0.1, kept_bytes=3), Piece(backward_s=0.2)),
            boundaries=(Boundary(name="layer1", forward_bytes=4, backward_bytes=5),),
            shared=(SharedParameters(num_bytes=6, pieces=(0, 1)),),
            input_bytes=7,
        ),
    ),
    update=UpdateCosts(state_share=2.0),
    program_bytes=9,
    cutter="graph",
    why="the model traces",
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    profile_file.write(tmp_path / "folder" / "profile.json", PROFILE)
    found = profile_file.read(tmp_path / "folder" / "profile.json", KEY, (8,))
    assert found.profile == PROFILE
    assert not found.why_not


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "--model vgg16, --image-size 64"}, "another model (--model resnet18, now --mod"),
        ({"device": "gpu, NVIDIA H200"}, "another device (cpu, 1 thread, now gpu, NVIDIA H200)"),
        ({"versions": "2, torch 2"}, "another version (1, now 2)"),
        ({"precision": "bfloat16"}, "another precision (float32, now bfloat16)"),
        ({"cutter": "replay"}, "another cutter (auto, now replay)"),
        ({"is_estimate": True}, "another kind (measured, now an estimate)"),
    ],
)
def test_one_of_something_else_is_ignored_and_said(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    profile_file.write(tmp_path / "profile.json", PROFILE)
    found = profile_file.read(tmp_path / "profile.json", replace(KEY, **change))  # type: ignore[arg-type]
    assert found.profile is None
    assert said in found.why_not
    assert found.why_not.endswith("and is ignored")


def test_the_cutter_that_was_found_is_the_same_profile(tmp_path: Path) -> None:
    """A run whose plan was chosen is told it by name."""
    profile_file.write(tmp_path / "profile.json", PROFILE)
    found = profile_file.read(tmp_path / "profile.json", replace(KEY, cutter="graph"))
    assert found.profile == PROFILE


def test_other_sizes_are_said(tmp_path: Path) -> None:
    profile_file.write(tmp_path / "profile.json", PROFILE)
    found = profile_file.read(tmp_path / "profile.json", KEY, (8, 16))
    assert found.profile is None
    assert "of micro-batches of 8 samples, not of 16" in found.why_not


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "key": {}}', '{"format": 99}'])
def test_a_file_that_is_no_profile_is_ignored_and_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    found = profile_file.read(tmp_path / "profile.json", KEY)
    assert found.profile is None
    assert "ignored" in found.why_not


def _with(path: tuple[str | int, ...], value: object) -> str:
    """The file, with another value at a place."""
    found = {"format": 1, **profile_file.plain(PROFILE)}
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("by_samples",), []),
        (("by_samples", 0, "samples"), 0),
        (("by_samples", 0, "samples"), "8"),
        (("by_samples", 0, "pieces"), []),
        (("by_samples", 0, "pieces", 0, "forward_s"), -1.0),
        (("by_samples", 0, "pieces", 0, "forward_s"), float("nan")),
        (("by_samples", 0, "pieces", 0, "kept_bytes"), None),
        (("by_samples", 0, "boundaries", 0, "forward_bytes"), "much"),
        (("by_samples", 0, "boundaries"), 3),
        (("by_samples", 0, "loss_s"), float("inf")),
        (("update", "state_share"), [2]),
        (("update",), None),
        (("key",), {"model": "m"}),
        (("program_bytes",), None),
    ],
)
def test_a_profile_with_a_wrong_number_is_ignored_and_said(
    tmp_path: Path, path: tuple[str | int, ...], value: object
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(_with(("program_bytes",), 9))
    assert profile_file.read(file, KEY).profile == PROFILE
    file.write_text(_with(path, value))
    found = profile_file.read(file, KEY)
    assert found.profile is None
    assert found.why_not == f"the file {file} is no profile, and is ignored"


def test_sizes_that_have_other_pieces_are_no_profile(tmp_path: Path) -> None:
    (one,) = PROFILE.by_samples
    other = replace(one, samples=16, boundaries=(replace(one.boundaries[0], name="layer2"),))
    for costs in ((one, other), (replace(one, samples=16), one)):
        profile_file.write(tmp_path / "profile.json", replace(PROFILE, by_samples=costs))
        assert profile_file.read(tmp_path / "profile.json", KEY).profile is None


def test_where_there_is_none_nothing_is_said(tmp_path: Path) -> None:
    assert profile_file.read(tmp_path / "profile.json", KEY) == profile_file.Read()
