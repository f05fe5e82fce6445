"""The story of a failure: which of a node's ranks failed first, why, and the exit code for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bundlerun.launcher.agent import entry
from bundlerun.launcher.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_NODE, EXIT_RESUMABLE
from bundlerun.launcher.ranks.abort import found_record, why_aborted
from bundlerun.launcher.run_folder.outcome import Outcome

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

PASSED_ON = (EXIT_CONFIG, EXIT_NODE, EXIT_RESUMABLE)
"""Exit codes of a worker that say what went wrong, and so are the launcher's too."""

ERROR_FILE_NAME = "error.json"


def explain(
    error: ChildFailedError, *, node_name: str, num_procs: int, run_dir: str
) -> tuple[str, int]:
    """What went wrong first, in plain words, and the exit code for it.

    Args:
        num_procs: ranks of this node.
    """
    rank, failure = error.get_first_failure()
    first_rank = rank - failure.local_rank
    local_rank, code, story = failure.local_rank, failure.exitcode, ""
    # A killed rank leaves no error file; the others' would only tell of its loss.
    if code >= 0:
        local_rank, code, story = first_story(Path(failure.error_file), local_rank, code)
    who = f"rank {first_rank + local_rank} (node {node_name}, local rank {local_rank})"
    if failure.exitcode < 0:
        text = f"{who} was killed by {failure.signal_name()}"
        why = why_aborted(found_record(run_dir, node_name, failure.pid))
        text += f": {why}" if why else ""
    elif story:
        text = f"{story.rstrip()}\n{who} failed as above"
    else:
        text = f"{who} ended with exit code {code}"
    if num_procs > 1:
        text += f"; the other {num_procs - 1} of this node were stopped"
    return text, code if code in PASSED_ON else EXIT_FAILED


def explain_end(
    reason: str, outcome: Outcome | None, *, node_name: str, shows_ranks: bool = True
) -> tuple[str, int]:
    """Why the run is over, in plain words, and the exit code for it.

    Args:
        reason: what the rendezvous says.
        outcome: what is written down of it, if anything is.
        node_name: of this node; only the one where the first failure was shows its traceback.
        shows_ranks: whether the ranks' own lines are on this console, as an error in one line is.
    """
    if outcome is None or outcome.state != "failed":
        return f"the run is over: {reason}", EXIT_FAILED
    first, code = outcome.first_error, outcome.exit_code
    text = f"the run has failed: {reason}"
    if first is None:
        return text, code
    who = f"local rank {first.local_rank} of node {first.node}"
    if first.node != node_name:
        return f"{text}; first of all {who}: {first.last_line}", code
    story = without_entry(first.text).rstrip()
    is_shown = shows_ranks and "\n" not in story
    told = "" if is_shown else f"{story}\n"
    return f"{told}{text}; first of all {who} as above", code


def first_story(error_file: Path, local_rank: int, code: int) -> tuple[int, int, str]:
    """The earliest of the node's error files; the agent may have noticed a follower first.

    torch's time stamps are whole seconds, too coarse for that.

    Args:
        error_file: the one that torch names, or what it says where there is none.
        local_rank: the rank that the agent noticed.
        code: its exit code.

    Returns:
        Local rank, exit code and traceback of the first failure.
    """
    if error_file.name != ERROR_FILE_NAME:
        return local_rank, code, ""
    files = error_file.parent.parent.glob(f"*/{ERROR_FILE_NAME}")
    for file in sorted(files, key=_written_at):
        try:
            message = json.loads(file.read_text(encoding="utf-8"))["message"]
            story = str(message["extraInfo"]["py_callstack"])
            found = int(message.get("errorCode", EXIT_FAILED))
            return int(file.parent.name), found, without_entry(story)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return local_rank, code, ""


def _written_at(file: Path) -> int:
    return file.stat().st_mtime_ns


def without_entry(story: str) -> str:
    """A traceback without the frames that lead from the agent into the worker's module."""
    lines = story.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    ours = [number for number in frames if entry.__file__ in lines[number]]
    rest = [number for number in frames if ours and number > ours[-1]]
    return "\n".join([lines[0], *lines[rest[0] :]]) if rest else story
