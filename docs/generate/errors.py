"""Pages of all errors by area: what is told, the exit code, and what to do."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from dataclasses import dataclass

from bundlerun.launcher import errors as kinds
from docs.generate.messages import BASE, Message, all_messages, error_classes, sources


@dataclass(frozen=True, slots=True)
class Area:
    """A page of errors.

    begins: files whose errors it has, by how their paths begin; the longest fit counts.
    """

    title: str
    about: str
    begins: tuple[str, ...]


AREAS = {
    "options": Area(
        "Options, variables and TOML files",
        "Told before anything starts, most of them before torch is imported.",
        ("launcher/options", "launcher/config", "launcher/launch_config", "launcher/work_config",
         "launcher/train_argv", "launcher/choices", "launcher/cli", "launcher/one_device",
         "launcher/layout/shape", "launcher/layout/chunks", "launcher/layout/schedule",
         "launcher/layout/microbatch", "launcher/commands"),
    ),
    "machine": Area(
        "This machine: devices, memory, files, ports",
        "What one node lacks. `bundlerun plan` shows what a run takes a node for.",
        ("launcher/layout", "launcher/agent", "launcher/preflight", "launcher/plan",
         "launcher/process", "launcher/console", "workers/device"),
    ),
    "nodes": Area(
        "Nodes that meet: names, ports, launchers, what must be alike",
        "How nodes find each other, and who says which process is which rank.",
        ("launcher/meeting", "launcher/rendezvous", "launcher/ranks", "workers/rank",
         "launcher/agreement/agreed", "launcher/agreement/sources"),
    ),
    "run-folder": Area(
        "Run folders, checkpoints, resuming",
        "Who has a folder, what is in it, and whether a run can go on with it.",
        ("launcher/run_folder", "launcher/agreement", "workers/state", "workers/snapshot",
         "workers/run", "workers/optim/optimizer_state", "launcher/commands/drain",
         "launcher/commands/run_folder"),
    ),
    "model": Area(
        "Models, cuts and weights",
        "What is trained, how it is divided, and what it begins with.",
        ("splits", "workers/model", "launcher/models", "launcher/commands/cuts"),
    ),
    "data": Area(
        "Data and recipes",
        "What is read, and what a recipe makes of it.",
        ("workers/data", "workers/recipes", "workers/recipe", "workers/report/evidence",
         "workers/pipeline/loss"),
    ),
    "look": Area(
        "Watching, reports, trackers, using a model",
        "What looks at runs and machines, and what else the launcher does.",
        ("launcher", "launcher/commands/look", "launcher/commands/use"),
    ),
    "training": Area(
        "While it trains, and in loops of your own",
        "What only a step can show, and the doors `protect` and `Bundle`.",
        ("workers",),
    ),
    "slurm": Area("Slurm", "Told by `bundlerun submit`, or in the job's log.", ("slurm",)),
}  # fmt: skip

_ADVICE = (
    (r"^cannot (read|list|clear)|: no such file|cannot read|is no JSON", "Look at the path that it "
     "names: whether it is there on this node, whole, and yours to read."),
    (r"^cannot (write|save|use|claim)|cannot write", "Look at the path that it names: free space, "
     "permissions, and whether its file system is up."),
    (r"is damaged|has no rows", "Use another copy of it, or, of a run, another checkpoint "
     "(--step)."),
    (r"must be|must end|is not|is none|is no |are not |needs|names|takes|has no|does not have|"
     r"gives|"
     r"leaves|go together|has the|has keypoints|missing", "Give it as the message says is right."),
)  # fmt: skip
_BY_KIND = {
    "NodeError": "Mend what it names on this machine, and start the same command again.",
    "CheckpointError": "The newest checkpoint that is whole is taken by itself; give another "
    "--run-dir to begin anew.",
    "ConfigError": "Mend what it names, and start the same command again.",
    "": "Mend what it names, and start the same command again.",
}
_BARE = re.compile(r"(error: )?<[^>]*>\n?")


def shown_messages() -> list[Message]:
    """All that say something of themselves; others pass on what is listed elsewhere."""
    return [each for each in all_messages() if each.text and not _BARE.fullmatch(each.text)]


def area_of(file: str) -> str:
    """The area of a file."""
    fits = [
        (len(begin), name)
        for name, area in AREAS.items()
        for begin in area.begins
        if file.startswith(begin)
    ]
    return max(fits)[1]


def halves(message: Message) -> tuple[str, str]:
    """What is wrong, and what to do."""
    text = " ".join(message.text.removeprefix("error: ").split())
    wrong, semicolon, way_on = text.partition("; ")
    if semicolon:
        return wrong, way_on
    for pattern, advice in _ADVICE:
        if re.search(pattern, text):
            return text, advice
    return text, _BY_KIND.get(message.error, _BY_KIND[""])


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    classes = error_classes(sources())
    rows: dict[str, list[str]] = defaultdict(list)
    for message in shown_messages():
        row = _row(message, classes)
        if row not in rows[area_of(message.file)]:
            rows[area_of(message.file)].append(row)
    return {f"errors/{name}.md": _page(area, rows[name]) for name, area in AREAS.items()}


def _page(area: Area, rows: list[str]) -> str:
    return "\n".join(
        [
            f"# Errors: {area.title}", "", area.about, "",
            "Made of the source, in the order of its files. `<name>` stands for what is filled in. "
            "[Troubleshooting](../troubleshooting.md) says how to read an error.", "",
            "| what is told | exit | what to do |", "|---|---|---|", *rows, "",
        ]
    )  # fmt: skip


def _row(message: Message, classes: dict[str, str]) -> str:
    wrong, way_on = map(_cell, halves(message))
    return f"| {wrong} | {exit_code(message.error, classes)} | {way_on} |"


def exit_code(error: str, classes: dict[str, str]) -> int:
    """With which code a program ends that tells it."""
    while error and not hasattr(kinds, error):
        error = classes[error]
    code: int = getattr(kinds, error or BASE).exit_code if error else kinds.EXIT_CONFIG
    return code


def _cell(text: str) -> str:
    """As a cell of a table, in which nothing is markup."""
    plain = html.escape(text, quote=False).replace("|", "&#124;")
    return re.sub(r"([*_`\[\]\\])", r"\\\1", plain)
