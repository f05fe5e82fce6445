"""Pure: a job that is to be submitted, checked, and as a batch script."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.errors import ConfigError
from bundlerun.slurm.jobs import TAG
from bundlerun.slurm.render import DEFAULTS, DIRECTIVES, LAST_CHECKPOINT_S, Kind, Script, setting

SET_BY_SCRIPT = ("--nnodes", "--rdzv-endpoint", "--rdzv-id", "--node-name", "--standalone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job that is to be submitted.

    Args:
        nodes: fewest and most, without spares.
        sbatch: further options for sbatch, words.
    """

    kind: Kind
    nodes: tuple[int, int]
    spares: int
    gpus_per_node: int
    cpus_per_node: int
    time: str
    job_name: str
    partition: str
    account: str
    array: str
    requeue_budget: int
    sbatch: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        least, most = self.nodes
        # The other kinds are all or nothing: no place for a range of nodes, or for spares.
        if self.kind is not Kind.BUNDLE and (least != most or self.spares):
            raise ConfigError(
                f"--kind {self.kind.value} has a fixed number of nodes; give --nodes {most}, no "
                "--spares, or --kind bundle"
            )
        if self.kind is Kind.ARRAY and most != 1:
            raise ConfigError(f"--kind array runs on one node each; --nodes {most} is for bundle")
        if (self.kind is Kind.ARRAY) != bool(self.array):
            raise ConfigError("--array and --kind array go together, such as --array 0-3")
        for flag, value in (
            ("--spares", self.spares),
            ("--gpus-per-node", self.gpus_per_node),
            ("--cpus-per-node", self.cpus_per_node),
            ("--requeue-budget", self.requeue_budget),
        ):
            if value < 0:
                raise ConfigError(f"{flag} {value} must be 0 or more")
        if self.time and limit_seconds(self.time) <= LAST_CHECKPOINT_S:
            raise ConfigError(
                f"--time {self.time} leaves nothing to train in: {LAST_CHECKPOINT_S} s of it are "
                "for the last checkpoint"
            )
        # Given twice, the user's would win over what the script works out from the job.
        for flag in (word.partition("=")[0] for word in self.words):
            if flag in SET_BY_SCRIPT:
                raise ConfigError(f"{flag} is set by the batch script; leave it out")

    @property
    def max_nodes(self) -> int:
        """Nodes to ask for at most, spares too."""
        return self.nodes[1] + self.spares


def script_of(request: Request, run_dir: Path, python: str) -> Script:
    """The batch script of a request.

    Args:
        run_dir: absolute.
        python: path of the interpreter that the nodes are to use.
    """
    least = request.nodes[0]
    count = f"{least}-{request.max_nodes}" if least < request.max_nodes else str(least)
    wanted: list[tuple[str, str | None]] = [
        ("job-name", request.job_name),
        ("comment", f"{TAG}{run_dir}"),
        ("nodes", count),
    ]
    optional = (
        ("array", request.array),
        ("gpus-per-node", str(request.gpus_per_node or "")),
        ("mincpus", str(request.cpus_per_node or "")),
        ("time", request.time),
        ("partition", request.partition),
        ("account", request.account),
    )
    wanted += [(name, value) for name, value in optional if value]
    wanted.append(("output", "slurm-%A_%a.out" if request.array else "slurm-%j.out"))
    values = {
        "RUN_DIR": str(run_dir),
        "MIN_NODES": str(least),
        "SPARES": str(request.spares),
        "REQUEUE_BUDGET": str(request.requeue_budget),
        "PYTHON": python,
    }
    # After the quotes of the fixed text: bash has to put the number in, job by job.
    behind = '/"$SLURM_ARRAY_TASK_ID"' if request.kind is Kind.ARRAY else ""
    settings = tuple(
        setting(each.name, values[each.name], is_fixed=True, behind=behind)
        if each.name == "RUN_DIR"
        else setting(each.name, values[each.name], is_fixed=True)
        for each in DEFAULTS[request.kind].settings
    )
    return Script(
        kind=request.kind,
        title=("Written by `bundlerun submit`.",),
        directives=(*wanted, *DIRECTIVES[request.kind]),
        settings=settings,
        words=request.words,
    )


def limit_seconds(text: str) -> int:
    """A time limit as Slurm reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ConfigError: it is written otherwise.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ConfigError(f"--time {text!r} is no time limit of Slurm's; write H:M:S or D-H:M:S")
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    # With days the parts begin with hours, else a lone number counts minutes.
    if days is not None:
        return ((int(days) * 24 + first) * 60 + second) * 60 + third
    if parts[2] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second
