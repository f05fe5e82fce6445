"""What the planner has chosen for a run, kept in its folder: all nodes and later starts have it.

decisions/DIGEST.json   {"question": {...}, "chosen": {"shape": "1,1", ...}, "plans": [...]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bundlerun.launcher.choices import CutterChoice, ExchangeDtype, ScheduleChoice, SchemeChoice
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import AUTO, Shape
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.paths import RunPaths

SOURCE = "chosen by the planner"
"""Where the value of an option is from, as a plan shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a decision holds for; another one of any of these is another question.

    Args:
        options: of training that the choice depends on, as typed, by name.
        num_nodes: the most that take part. Not their devices: nodes that differ decide alike.
        devices: their kind.
        cluster: text of the file that describes the nodes; empty: each takes all to be like itself.
        min_nodes: the fewest that go on without the others.
    """

    options: Mapping[str, str]
    num_nodes: int
    devices: str
    cluster: str
    min_nodes: int = 1

    def to_plain(self) -> dict[str, object]:
        """It as JSON has it."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Stands for all of it."""
        text = json.dumps(self.to_plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The values of options that the planner has chosen; None where the user has."""

    shape: Shape
    cut: tuple[str, ...]
    cutter: CutterChoice
    schedule: ScheduleChoice
    sync: SchemeChoice
    microbatch_size: int
    recompute: str
    exchange: str
    exchange_dtype: ExchangeDtype

    def to_plain(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {**asdict(self), "shape": str(self.shape), "cut": list(self.cut)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Chosen:
        """Reads what `to_plain` has made; any exception where it is something else."""
        shape = Shape.parse(values["shape"])
        return cls(**{**values, "shape": shape, "cut": tuple(values["cut"])})

    def applied(self, train: Resolved[TrainConfig]) -> Resolved[TrainConfig]:
        """The configuration with these values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        changed = [name for name, value in values.items() if value != getattr(train.value, name)]
        return Resolved(
            replace(train.value, **values), {**train.sources, **dict.fromkeys(changed, SOURCE)}
        )


def is_asked(train: Resolved[TrainConfig]) -> bool:
    """Whether the planner is to choose something, of which it chooses all that nobody has said.

    The order of passes and the size of micro-batches have defaults that need no profile: for them
    auto and 0 count where somebody has said so, for shape, cuts and exchange in any case.
    With a number of equal parts, or several shapes that will do, they stay as by default.
    """
    value = train.value
    if value.is_for_planner or value.exchange == AUTO:
        return True
    if value.shape.others or any(cut.isdecimal() for cut in value.cut):
        return False
    is_open = {"schedule": value.schedule == "auto", "microbatch_size": not value.microbatch_size}
    return any(
        is_open[name] and train.sources.get(name, "default") != "default" for name in is_open
    )


def kept_decision(path: Path) -> dict[str, Any]:
    """The document in a file; empty where none can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Chosen.from_plain(found["chosen"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return {}
    return dict(found)


def keep_decision(path: Path, document: Mapping[str, object]) -> dict[str, Any]:
    """Keeps a decision; of several nodes that decide at once, the first one's holds for all.

    Returns:
        The document that holds.

    Raises:
        OSError: the run folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    if not create_text(path, text, may_be_met_empty=False):
        kept = kept_decision(path)
        if kept:
            return kept
        write_text(path, text)  # there is one that nobody can read
    return dict(document)


def with_kept_decision(train: Resolved[TrainConfig]) -> Resolved[TrainConfig]:
    """What a rank trains that was started without `bundlerun run`: by the newest decision.

    Raises:
        ConfigError: something is left to the planner, and it has not chosen yet.
    """
    if not train.value.is_for_planner and train.value.exchange != AUTO:
        return train
    run_dir = train.value.run_dir
    files = RunPaths(Path(run_dir)).all_decisions() if run_dir else []
    kept = kept_decision(files[-1]) if files else {}
    if not kept:
        option = "--cut" if AUTO in train.value.cut else "--exchange"
        asked = f"{'--shape' if train.value.shape.is_auto else option} {AUTO}"
        raise ConfigError(
            f"{asked} is decided before ranks start, and nothing has done so for --run-dir "
            f"{run_dir!r}; use bundlerun run, or give what bundlerun plan with the same options "
            "shows"
        )
    return Chosen.from_plain(kept["chosen"]).applied(train)
