"""What an earlier run gives to one that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Like:
    """What an earlier run says of options, by field name: who says it, and the value.

    data: its DATA; empty where there is none to repeat.
    unknown: options that this version does not have.
    """

    name: str = ""
    data: str = ""
    train: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    launch: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
