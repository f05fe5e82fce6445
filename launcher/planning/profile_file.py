"""A profile as a file of the run folder: JSON, written whole, read only where it still holds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    SharedParameters,
    UpdateCosts,
)
from bundlerun.launcher.run_folder.files import write_text

_FORMAT = 1
Checked = TypeVar("Checked", Piece, Boundary, SharedParameters, ModelCosts, UpdateCosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a file has.

    Args:
        profile: None: there is none, or it is of something else.
        why_not: in a sentence; empty where there is a profile, or no file.
    """

    profile: Profile | None = None
    why_not: str = ""


def write(path: Path, profile: Profile) -> None:
    """Puts a profile in place.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(path, json.dumps({"format": _FORMAT, **plain(profile)}, indent=1) + "\n")


def plain(profile: Profile) -> dict[str, Any]:
    """What JSON can say of it."""
    return asdict(profile)


def load(path: Path) -> Read:
    """The profile in a file, whatever it is of."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Read()
    except (OSError, ValueError) as exc:
        return Read(why_not=f"the profile in {path} cannot be read ({exc}), and is ignored")
    try:
        if found["format"] != _FORMAT:
            return Read(why_not=f"the profile in {path} is of another version, and is ignored")
        profile = from_plain(found)
    except (KeyError, TypeError, ValueError):
        return Read(why_not=f"the file {path} is no profile, and is ignored")
    return Read(profile=profile)


def read(path: Path, key: ProfileKey, sizes: tuple[int, ...] = ()) -> Read:
    """The profile in a file, if it holds for `key`.

    Args:
        path: of the file.
        key: what is wanted.
        sizes: of micro-batches that it has to have; nothing: any.
    """
    loaded = load(path)
    profile = loaded.profile
    if profile is None:
        return loaded
    for each in fields(ProfileKey):
        one, other = getattr(profile.key, each.name), getattr(key, each.name)
        # Of a run whose plan was chosen, the option is what was found then.
        if one != other and not (each.name == "cutter" and other == profile.cutter):
            what = {"is_estimate": "kind", "versions": "version"}.get(each.name, each.name)
            return Read(why_not=_unlike(path, what, one, other))
    known = {costs.samples for costs in profile.by_samples}
    if missing := sorted(set(sizes) - known):
        have, want = ", ".join(map(str, sorted(known))), ", ".join(map(str, missing))
        return Read(
            why_not=f"the profile in {path} is of micro-batches of {have} samples, not of {want}, "
            "and is ignored"
        )
    return Read(profile=profile)


def _unlike(path: Path, what: str, one: object, other: object) -> str:
    if what == "kind":
        names = {True: "an estimate", False: "measured"}
        one, other = names[bool(one)], names[bool(other)]
    unlike = differing(str(one), str(other))
    return f"the profile in {path} is of another {what} ({unlike}), and is ignored"


def differing(one: str, other: str) -> str:
    """The parts of two lists in words that are not in both."""
    ours, theirs = one.split(", "), other.split(", ")
    gone = ", ".join(word for word in ours if word not in theirs)
    new = ", ".join(word for word in theirs if word not in ours)
    return f"{gone or 'nothing'}, now {new or 'nothing'}"


def from_plain(found: dict[str, Any]) -> Profile:
    """The profile that `plain` gave.

    Raises:
        KeyError, TypeError, ValueError: it did not.
    """
    by_samples = tuple(_costs(each) for each in found["by_samples"])
    sizes = [costs.samples for costs in by_samples]
    names = {tuple(bound.name for bound in costs.boundaries) for costs in by_samples}
    if not sizes or sizes != sorted(set(sizes)) or len(names) != 1:
        raise ValueError(f"micro-batches of {sizes} samples, {len(names)} kinds of boundaries")
    return Profile(
        key=ProfileKey(**found["key"]),
        by_samples=by_samples,
        update=_checked(UpdateCosts(**found["update"])),
        program_bytes=int(found["program_bytes"]),
        cutter=found["cutter"],
        why=str(found["why"]),
    )


def _costs(found: dict[str, Any]) -> ModelCosts:
    rest = {k: found[k] for k in ("samples", "input_bytes", "target_bytes", "loss_s")}
    costs = ModelCosts(
        pieces=tuple(_checked(Piece(**each)) for each in found["pieces"]),
        boundaries=tuple(_checked(Boundary(**each)) for each in found["boundaries"]),
        shared=tuple(
            _checked(SharedParameters(**{**each, "pieces": tuple(map(int, each["pieces"]))}))
            for each in found["shared"]
        ),
        **rest,
    )
    if costs.samples < 1:
        raise ValueError(f"micro-batches of {costs.samples} samples")
    return _checked(costs)


def _checked(value: Checked) -> Checked:
    """The same.

    Raises:
        ValueError: a number in it is none, or below 0, or without end.
    """
    for each in fields(value):
        number = getattr(value, each.name)
        if each.type in ("int", "float") and not (
            isinstance(number, (int, float)) and 0 <= number < math.inf
        ):
            raise ValueError(f"{each.name} is {number!r}")
    return value
