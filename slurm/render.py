"""Pure: batch scripts as text, for a person to read, edit and submit.

The scripts next to this file are what `script` gives for `DEFAULTS`; a test compares them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a job does with its nodes."""

    BUNDLE = "bundle"
    CLASSIC = "classic"
    ARRAY = "array"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A variable on top of a script.

    Args:
        default: what the environment may override, written as in double quotes of bash; with
            `is_fixed` any text, taken as it is.
        behind: bash that follows the text of a fixed setting.
    """

    name: str
    default: str
    comment: str
    is_fixed: bool = False
    behind: str = ""

    def __str__(self) -> str:
        if self.is_fixed:
            return f"{self.name}={shlex.quote(self.default)}{self.behind}"
        return f': "${{{self.name}:={self.default}}}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Everything that differs between two scripts.

    Args:
        title: lines of comment on top.
        directives: options of sbatch, with value, or None for one that has none.
        settings: variables.
        words: options of `bundlerun run` and DATA; None takes those that sbatch was given.
    """

    kind: Kind
    title: Sequence[str]
    directives: Sequence[tuple[str, str | None]]
    settings: Sequence[Setting]
    words: Sequence[str] | None = None


LAST_CHECKPOINT_S = 120
"""For the last checkpoint, before the time limit, seconds."""

_SETTINGS = {
    "RUN_DIR": "run folder, on a file system that all nodes share",
    "MIN_NODES": "the run continues while it has this many nodes",
    "SPARES": "nodes that wait for one to fail",
    "REQUEUE_BUDGET": "times the job may start again",
    "PYTHON": "the Python that has bundlerun, on all nodes",
}

_COMMON: tuple[tuple[str, str | None], ...] = (
    ("requeue", None),
    ("open-mode", "append"),
    ("signal", f"B:USR1@{LAST_CHECKPOINT_S}"),
)

DIRECTIVES: Mapping[Kind, tuple[tuple[str, str | None], ...]] = {
    Kind.BUNDLE: (("no-kill", None), *_COMMON),
    Kind.CLASSIC: _COMMON,
    Kind.ARRAY: _COMMON,
}
"""What each kind of script needs of sbatch."""

SRUN: Mapping[Kind, tuple[str, ...]] = {
    Kind.BUNDLE: ("--no-kill", "--kill-on-bad-exit=0"),
    Kind.CLASSIC: ("--kill-on-bad-exit=1",),
    Kind.ARRAY: ("--kill-on-bad-exit=1",),
}
"""... and of srun, which does not inherit them."""


def setting(name: str, default: str, *, is_fixed: bool = False, behind: str = "") -> Setting:
    """One of the known settings."""
    return Setting(
        name=name, default=default, comment=_SETTINGS[name], is_fixed=is_fixed, behind=behind
    )


DEFAULTS: Mapping[Kind, Script] = {
    Kind.BUNDLE: Script(
        kind=Kind.BUNDLE,
        title=(
            "An elastic run: it continues when nodes die, and comes back after preemption and at",
            "the time limit until it is finished.",
            "",
            "    sbatch slurm/bundle.sbatch --model resnet101 --shape 1,1 /data/imagenet",
        ),
        directives=(
            ("job-name", "bundlerun"),
            ("nodes", "2-4"),
            ("gpus-per-node", "4"),
            ("mincpus", "8"),
            ("time", "12:00:00"),
            ("output", "slurm-%j.out"),
            *DIRECTIVES[Kind.BUNDLE],
        ),
        settings=(
            setting("RUN_DIR", "runs/slurm-$SLURM_JOB_ID"),
            setting("MIN_NODES", "1"),
            setting("SPARES", "0"),
            setting("REQUEUE_BUDGET", "20"),
            setting("PYTHON", "python3"),
        ),
    ),
    Kind.CLASSIC: Script(
        kind=Kind.CLASSIC,
        title=(
            "A run of fixed size: all nodes or none. When one is lost the job starts again.",
            "",
            "    sbatch slurm/classic.sbatch --model resnet101 --shape 1,1 /data/imagenet",
        ),
        directives=(
            ("job-name", "bundlerun"),
            ("nodes", "4"),
            ("gpus-per-node", "4"),
            ("mincpus", "8"),
            ("time", "12:00:00"),
            ("output", "slurm-%j.out"),
            *DIRECTIVES[Kind.CLASSIC],
        ),
        settings=(
            setting("RUN_DIR", "runs/slurm-$SLURM_JOB_ID"),
            setting("REQUEUE_BUDGET", "20"),
            setting("PYTHON", "python3"),
        ),
    ),
    Kind.ARRAY: Script(
        kind=Kind.ARRAY,
        title=(
            "Many runs, one node each: the same options with another seed. Change the last line",
            "for runs that differ in something else; $SLURM_ARRAY_TASK_ID counts them.",
            "",
            "    sbatch slurm/array.sbatch --model resnet18 --shape 1 /data/imagenet",
        ),
        directives=(
            ("job-name", "bundlerun"),
            ("array", "0-3"),
            ("nodes", "1"),
            ("gpus-per-node", "4"),
            ("mincpus", "8"),
            ("time", "12:00:00"),
            ("output", "slurm-%A_%a.out"),
            *DIRECTIVES[Kind.ARRAY],
        ),
        settings=(
            setting("RUN_DIR", "runs/slurm-$SLURM_ARRAY_JOB_ID/$SLURM_ARRAY_TASK_ID"),
            setting("REQUEUE_BUDGET", "20"),
            setting("PYTHON", "python3"),
        ),
    ),
}


def script(wanted: Script) -> str:
    """The text of a batch script."""
    title = [*wanted.title, "What each line is for: docs/slurm.md"]
    lines = ["#!/usr/bin/env bash", *(f"# {line}".rstrip() for line in title)]
    lines += [directive(name, value) for name, value in wanted.directives]
    lines += ["", "set -euo pipefail", ""]
    for each in wanted.settings:
        lines += [f"# {each.comment}", str(each)]
    lines.append("")
    if wanted.words is not None:
        lines += [f"set -- {shlex.join(wanted.words)}", ""]
    return "\n".join([*lines, *_command(wanted.kind), ""])


def directive(name: str, value: str | None) -> str:
    """One line of options for sbatch, which takes words in double quotes, and no escapes.

    Raises:
        ValueError: the value cannot be written there.
    """
    if value is None:
        return f"#SBATCH --{name}"
    # sbatch knows no escapes: none of these can stand in its double quotes.
    if any(char in value for char in '\n"\\'):
        raise ValueError(f"--{name} {value!r} has a quote, a backslash or a new line in it")
    # Quotes only where needed: these lines are for people to read and edit.
    plain = all(char.isalnum() or char in "_-+=%:,./@[]" for char in value) and value
    return f"#SBATCH --{name}={value}" if plain else f'#SBATCH --{name}="{value}"'


def _command(kind: Kind) -> list[str]:
    # srun starts all nodes, spares included; --nnodes says how many train at once.
    nnodes = {
        Kind.BUNDLE: '--nnodes="$MIN_NODES:$((SLURM_NNODES - SPARES))"',
        Kind.CLASSIC: '--nnodes="$SLURM_NNODES"',
        Kind.ARRAY: "",
    }[kind]
    tail = '"$@" --seed="$SLURM_ARRAY_TASK_ID"' if kind is Kind.ARRAY else '"$@"'
    run = " ".join(filter(None, [nnodes, '--run-dir="$RUN_DIR"', tail]))
    return [
        'exec "$PYTHON" -m bundlerun.slurm.batch --requeue-budget="$REQUEUE_BUDGET" -- \\',
        f"    srun {' '.join(SRUN[kind])} \\",
        '    --nodes="$SLURM_NNODES" --ntasks-per-node=1 --cpu-bind=none \\',
        f'    "$PYTHON" -m bundlerun.slurm.node {run}',
    ]


def main() -> None:
    """Writes the scripts next to this file."""
    from pathlib import Path

    for kind, wanted in DEFAULTS.items():
        Path(__file__).with_name(f"{kind.value}.sbatch").write_text(script(wanted))


if __name__ == "__main__":
    main()
