"""Why a rank was ended by SIGABRT: torch does that where a collective of NCCL does not end."""

from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.run_folder.paths import RunPaths


def found_record(run_dir: str, node_name: str, pid: int) -> Path | None:
    """The file that torch wrote before it ended a process; None where there is none.

    Args:
        run_dir: the run folder; empty where nobody knows.
        node_name: of this node.
        pid: of the process.
    """
    if not run_dir:
        return None
    begin = RunPaths(Path(run_dir)).flight_record(node_name, pid)
    try:
        return min(begin.parent.glob(f"{begin.name}*"), default=None)
    except OSError:
        return None


def why_aborted(record: Path | None) -> str:
    """In plain words; empty where nothing is known."""
    if record is None:
        return ""
    return (
        "torch ended it: a collective of NCCL did not end within --timeout-s, or failed, as where "
        f"another rank takes no part; what this rank had begun is in {record}"
    )
