"""A link between two nodes that is slow, or loses: whether it is told, and which one.

Hosts of network namespaces, one rank each; what one of them may send is changed as the run goes.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.hosts import Hosts, Wire, open_hosts, why_not
from benchmarks.faults.job import Job, host_nodes, opened
from benchmarks.results.record import Check, Options, print_table
from benchmarks.why import planted
from benchmarks.why.trial import WORK, free_port
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "a link that is slow or loses is told by its two nodes as the run goes, and no other is"
MBIT_PER_S = 100
BAD = "n1"
REPEATS = 3
_WATCHED_S = 30.0
_FIRST_STEPS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to the link of one node.

    Args:
        words: of `tc`, see `Job.reshape`; empty: nothing. why: a word of what is to be told.
    """

    name: str
    words: str
    why: str


CASES = (
    Case("healthy", "", ""),
    Case("a quarter as fast", f"rate {MBIT_PER_S // 4}mbit burst 36000 limit 4000000", "slow"),
    # What does not fit into a short queue is lost.
    Case("loses", f"rate {MBIT_PER_S}mbit burst 18000 limit 27000", "loses"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What was told within the time: of which nodes, in words, after how long."""

    pairs: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    after_s: float | None

    def is_right(self, case: Case) -> bool:
        """Whether that is what was done, and nothing else."""
        if not case.words:
            return not self.pairs
        sources = {source for source, _ in self.pairs}
        return sources == {BAD} and any(case.why in text for text in self.texts)


def run(options: Options) -> None:
    """Case by case."""
    rows, num_right, num_tried = [], 0, 0
    recorded: dict[str, object] = {}
    with open_hosts(3, Wire(mbit_per_s=MBIT_PER_S)) as hosts:
        for case in CASES:
            if not options.wants(case.name):
                continue
            found = [told(case, hosts) for _ in range(options.rounds_or(REPEATS))]
            right = sum(each.is_right(case) for each in found)
            num_right, num_tried = num_right + right, num_tried + len(found)
            after = [each.after_s for each in found if each.after_s is not None]
            rows.append([case.name, len(found), right, max(after, default=0.0)])
            print(f"{case.name}: {' | '.join(found[-1].texts) or 'nothing is told'}", flush=True)
            recorded[case.name] = {"right": right, "of": len(found), "after_s": after}
    print_table(["case", "runs", "told as it is", "after s, at most"], rows)
    check = Check("told as it is, at least", num_right / max(1, num_tried), 1.0)
    options.record("bad_link", recorded, [check])


def skip_reason() -> str:
    """Why there are no hosts; empty where there are."""
    return why_not()


def told(
    case: Case, hosts: Hosts, watched_s: float = _WATCHED_S, *, until_told: bool = False
) -> Result:
    """Has a run of three nodes go on for a while with the link as it is in the case.

    Args:
        watched_s: for how long. until_told: or until something is told.
    """
    with tempfile.TemporaryDirectory(prefix="bundlerun-link-") as name:
        folder = Path(name)
        job = Job(
            folder,
            host_nodes(hosts, (1, 1, 1)),
            port=free_port(),
            hosts=hosts,
            options={"shape": "1", "share": "equal", "checkpoint-steps": 0},
            environ={
                planted.FILE_VARIABLE: str(folder / "plant"),
                "BUNDLERUN_AFFINITY": "false",
                "WHY_SAMPLES": "1000000",
                "WHY_BALLAST": "250000",
            },
            program="benchmarks.why.agent",
            work=WORK,
        )
        with opened(job):
            job.wait_for_ranks(3, 120)
            job.wait_for_step(_FIRST_STEPS, 120)
            if case.words:
                job.reshape(BAD, case.words)
            begin = time.monotonic()
            after_s = None
            while time.monotonic() < begin + watched_s and not (until_told and after_s):
                job.tail.look()
                if after_s is None and _told(job):
                    after_s = time.monotonic() - begin
                time.sleep(0.2)
            # For the next one.
            job.reshape(BAD, f"rate {MBIT_PER_S}mbit burst 36000 limit 4000000")
            rows = _told(job)
        return Result(
            tuple((str(row["from"]), str(row["to"])) for row in rows),
            tuple(str(row["text"]) for row in rows),
            after_s,
        )


def _told(job: Job) -> list[dict[str, object]]:
    events = read_events(RunPaths(job.run_dir).events)
    return [dict(row) for row in events if name_of(row) == "bad link"]
