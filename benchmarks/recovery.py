"""From each kind of fault to the next finished step, compared with stock torchrun."""

from __future__ import annotations

import math
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.cluster.hosts import Hosts, Wire, open_hosts, why_not
from benchmarks.faults.chaos import leader
from benchmarks.faults.job import Job, NodeOf, host_nodes, loopback_nodes, opened
from benchmarks.faults.stock import StockJob
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from bundlerun.launcher.run_folder.events import EventName, name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "no fault costs a finished step, and the next one follows within seconds"
SLOTS = (2, 2, 2)
REPEATS = 10
STOCK_REPEATS = 2
"""Of torchrun, whose recoveries take up to a minute and more each."""
LIMIT_S = 90.0
NEVER = math.inf
WIRE = Wire(mbit_per_s=1000)
PHASES: tuple[EventName, ...] = (
    "asks for a round",
    "in a round",
    "starts",
    "met",
    "restored",
    "first step",
)
"""Events of a recovery, in order; each phase ends with the last of its kind."""


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, the node it hits, and how soon the next step is to be finished, seconds.

    ways: of our job; of another one than by default, beside which stock has none.
    """

    name: str
    act: Callable[[Job], None]
    target_s: float
    needs_links: bool = False
    is_join: bool = False
    ways: Mapping[str, Any] = field(default_factory=dict, hash=False)


def _kill_worker(job: Job) -> None:
    job.signal_rank("n1", 0, signal.SIGKILL)


def _freeze_worker(job: Job) -> None:
    job.signal_rank("n1", 0, signal.SIGSTOP)


def _kill_store(job: Job) -> None:
    job.kill_node("n0" if isinstance(job, StockJob) else leader(job))


def _kill_all(job: Job) -> None:
    for name in list(job.agents):
        # All frozen first, so that none sees another one go.
        job.signal_node(name, signal.SIGSTOP)
    for name in list(job.agents):
        job.kill_node(name)
    for node in job.nodes:
        job.start(node.name)


STANDBY_ROUNDS = 5
STANDBY_REPEATS = 2
"""Faults of a job before the other kind has its turn."""
STANDBY_LIMIT_S = 180.0
"""Until all standbys are ready: they begin one after the other, each on what the ranks leave."""
WARM: dict[str, object] = {
    "model": "shufflenet_v2_x0_5",
    "cut": "",
    "image-size": 32,
    "batch-size": 12,
    "microbatch-size": 2,
}
"""What is trained beside standbys: of a model in a user's file they do no step."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "forked": {"options": WARM},
    "--standby": {"options": WARM, "environ": {"BUNDLERUN_STANDBY": "1"}},
}

CASES = (
    Case("kill a worker", _kill_worker, 1.5),
    Case("kill a node", lambda job: job.kill_node("n1"), 3),
    Case("freeze a worker", _freeze_worker, 5),
    Case("freeze a node", lambda job: job.signal_node("n1", signal.SIGSTOP), 5),
    Case("cut a link", lambda job: job.link("n1", "down"), 5, needs_links=True),
    Case("kill the store's node", _kill_store, 4),
    Case("kill an agent", lambda job: job.kill_agent("n1"), 3),
    Case("a node joins", lambda job: job.start("n1"), 2, is_join=True),
    Case(
        "a node joins, hand_over=1",
        lambda job: job.start("n1"),
        0.5,
        is_join=True,
        ways={"conf": "first_wait=60,hand_over=1"},
    ),
    Case("kill all, start again", _kill_all, NEVER),
)
STANDBY_CASES = (
    Case("kill a worker, --standby", _kill_worker, NEVER),
    Case("kill a node, --standby", lambda job: job.kill_node("n1"), NEVER),
)
"""With standbys and without, in turn: what they save shows next to each other only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One fault. took_s: to the next finished step; phases: when each ended, seconds after it."""

    took_s: float
    lost: int
    phases: dict[str, float]


def run(options: Options) -> None:
    """Ours and stock in turn, fault by fault; each time with all nodes again before."""
    without_links = why_not()
    if without_links:
        print(f"no link is cut, the nodes are on the loopback: {without_links}", flush=True)
    cases = [
        case
        for case in CASES
        if options.wants(case.name) and not (case.needs_links and without_links)
    ]
    warm_cases = [case for case in STANDBY_CASES if options.wants(case.name)]
    repeats = options.rounds_or(REPEATS)
    found: dict[str, dict[str, list[Result]]] = {}
    network = nullcontext() if without_links else open_hosts(len(SLOTS), WIRE)
    with network as hosts:
        for case in cases:
            mine = found.setdefault(case.name, {})
            mine["bundlerun"] = repeated(Job, case, repeats, hosts, **case.ways)
            if not case.ways:
                mine["torchrun"] = repeated(StockJob, case, min(repeats, STOCK_REPEATS), hosts)
            for who, results in mine.items():
                print(f"{case.name}, {who}: {times_of(results)}", flush=True)
        warm = {
            case: _in_turn(case, options.rounds_or(STANDBY_ROUNDS), hosts) for case in warm_cases
        }
    recorded = _standby_report(warm)
    _report(options, cases, found, repeats, recorded)


def _in_turn(case: Case, rounds: int, hosts: Hosts | None) -> dict[str, list[Result]]:
    """A fault with standbys and without: jobs in turn, the other kind first each time."""
    found: dict[str, list[Result]] = {who: [] for who in WAYS}
    for number in range(rounds):
        for who in list(WAYS)[:: 1 if number % 2 else -1]:
            results = repeated(Job, case, STANDBY_REPEATS, hosts, **WAYS[who])
            print(f"{case.name}, {who}: {times_of(results)}", flush=True)
            found[who] += results
    return found


def repeated(
    kind: type[Job],
    case: Case,
    repeats: int,
    hosts: Hosts | None,
    slots: Sequence[int] = SLOTS,
    **ways: Any,  # noqa: ANN401 (of the job)
) -> list[Result]:
    """The same fault again and again in one run; ends where the run does not continue.

    Args:
        kind: of the run: ours, or stock.
        case: the fault.
        repeats: how often.
        hosts: that the nodes are; None: they are on the loopback.
        slots: ranks of each node.
        ways: of the job.
    """
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="bundlerun-recovery-") as folder:
        nodes = loopback_nodes(slots) if hosts is None else host_nodes(hosts, slots)
        job = kind(Path(folder), nodes, hosts=hosts, **ways)
        _heal(job)  # a run before it that stood still may have left a link down
        with opened(job):
            job.wait_for_step(10, 120)
            for _ in range(repeats):
                # One job that stands still must not cost what all others have shown.
                try:
                    if "BUNDLERUN_STANDBY" in ways.get("environ", {}):
                        job.wait_until(
                            lambda: are_ready(job.nodes, read_events(RunPaths(job.run_dir).events)),
                            "standbys",
                            STANDBY_LIMIT_S,
                        )
                    results.append(_measure(job, case))
                    # Later repeats would measure a run that is not whole.
                    if results[-1].took_s == NEVER or not _is_whole_again(job):
                        break
                except AssertionError as exc:
                    print(f"{case.name}: {str(exc).splitlines()[0]}", flush=True)
                    results.append(Result(took_s=NEVER, lost=0, phases={}))
                    break
    return results


def _measure(job: Job, case: Case) -> Result:
    if case.is_join:
        job.kill_node("n1")
        before = time.monotonic()
        # Without the node first: the join is what is measured.
        _wait(job, lambda: job.tail.next_finished(before))
    # Some steps first, so that the fault hits a run that is under way.
    job.wait_for_step(job.tail.look() + 5, LIMIT_S)
    resumes = len(job.tail.resumes)
    at = time.monotonic()
    case.act(job)
    step_at = _wait(job, lambda: job.tail.next_finished(at))
    phases = _phases(job, at, step_at) if step_at else {}
    took_s = NEVER if step_at is None else step_at - at
    if case.is_join and step_at is not None:
        # What the others notice of it: the longest time without a finished step.
        took_s = max(b - a for (a, _), (b, _) in pairwise(job.tail.times) if a >= at - 1)
    return Result(took_s=took_s, lost=job.tail.lost_since(resumes), phases=phases)


def _wait(job: Job, found: Callable[[], float | None]) -> float | None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        job.tail.look()
        at = found()
        if at is not None:
            return at
        time.sleep(0.005)
    return None


def _is_whole_again(job: Job) -> bool:
    """Heals what was done; whether all nodes then train together."""
    _heal(job)
    for name in job.agents:
        # Frozen processes have to run to notice that they are out, and to end.
        job.signal_node(name, signal.SIGCONT)
    job.reap()
    since = time.monotonic()
    is_started = False
    for node in job.nodes:
        if node.name not in job.agents:
            job.start(node.name)
            is_started = True
    if is_started and _wait(job, lambda: job.tail.next_finished(since)) is None:
        return False
    if not isinstance(job, StockJob):
        job.wait_for_ranks(sum(node.slots for node in job.nodes), LIMIT_S)
    return True


def are_ready(nodes: Sequence[NodeOf], events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each rank of the nodes has a standby that came after it."""
    last = {(row["node"], row.get("local_rank"), name_of(row)): row["t_s"] for row in events}
    return all(
        last.get((node.name, rank, "standby ready"), 0.0)
        > last.get((node.name, rank, "starts"), math.inf)
        for node in nodes
        for rank in range(node.slots)
    )


def _heal(job: Job) -> None:
    for node in job.nodes if job.hosts else ():
        job.link(node.name, "up")


def _phases(job: Job, at: float, step_at: float) -> dict[str, float]:
    """Seconds after the fault at which each phase was over for the last who took part."""
    rows: list[dict[str, Any]] = read_events(RunPaths(job.run_dir).events)
    # One clock for all, as all nodes are on this machine.
    inside = [row for row in rows if at <= row["t_s"] <= step_at]
    ends = {name: [r["t_s"] - at for r in inside if name_of(r) == name] for name in PHASES}
    return {name: round(max(times), 3) for name, times in ends.items() if times}


def times_of(results: Sequence[Result]) -> str:
    """In seconds, one after the other."""
    return ", ".join("never" if r.took_s == NEVER else f"{r.took_s:.2f}" for r in results)


def _standby_report(found: Mapping[Case, dict[str, list[Result]]]) -> dict[str, object]:
    """Prints what standbys save; what is to be recorded of it."""
    rows: list[list[object]] = []
    recorded: dict[str, object] = {}
    for case, ways in found.items():
        for who, results in ways.items():
            times = [r.took_s for r in results]
            ends = [r.phases for r in results if {"starts", "first step"} <= r.phases.keys()]
            inside = [each["first step"] - each["starts"] for each in ends]
            median = statistics.median(inside) if inside else "-"
            both = shown(statistics.median(times)), shown(max(times))
            rows.append([case.name, who, *both, max(r.lost for r in results), median])
            recorded[f"{case.name}, {who}"] = recorded_of(results)
    if rows:
        head = ["fault", "next start", "median s", "worst", "lost", "from its start to a step s"]
        print_table(head, rows)
    return recorded


def recorded_of(results: Sequence[Result]) -> dict[str, object]:
    """What is kept of the results."""
    return {
        "seconds": [None if r.took_s == NEVER else round(r.took_s, 3) for r in results],
        "lost": [r.lost for r in results],
        "phases": [r.phases for r in results],
    }


def _report(
    options: Options,
    cases: list[Case],
    found: dict[str, dict[str, list[Result]]],
    repeats: int,
    besides: Mapping[str, object],
) -> None:
    rows, checks = [], []
    bars = Bars("s", f"fault to next finished step, median; {LIMIT_S:g} s is never")
    recorded: dict[str, object] = {
        "repeats": repeats,
        "stock_repeats": min(repeats, STOCK_REPEATS),
        "limit_s": LIMIT_S,
        **besides,
    }
    for case in cases:
        row: list[object] = [case.name]
        for who, results in found[case.name].items():
            times = [r.took_s for r in results]
            lost = max(r.lost for r in results)
            row += [shown(statistics.median(times)), shown(max(times)), lost]
            bars.add(case.name, who, min(LIMIT_S, statistics.median(times)))
            recorded[f"{case.name}, {who}"] = recorded_of(results)
        ours = found[case.name]["bundlerun"]
        rows.append([*row, *["-"] * (7 - len(row))])
        if case.target_s < NEVER:
            median = statistics.median(r.took_s for r in ours)
            # "Never" is infinite: in the check it counts as the limit.
            checks.append(
                Check(f"{case.name}: seconds, at most", min(LIMIT_S, median), case.target_s)
            )
            checks.append(Check(f"{case.name}: steps lost, at most", max(r.lost for r in ours), 0))
    if not rows:  # of standbys only: there is nothing to draw
        options.record("recovery", recorded)
        return
    print_table(["fault", "ours s", "worst", "lost", "stock s", "worst", "lost"], rows)
    phase_rows = []
    for case in cases:
        whole = [r.phases for r in found[case.name]["bundlerun"] if r.phases]
        medians = [
            statistics.median(p[name] for p in whole if name in p)
            if any(name in p for p in whole)
            else "-"
            for name in PHASES
        ]
        phase_rows.append([case.name, *medians])
    print("\nours, seconds after the fault at which each phase was over, median:\n")
    print_table(["fault", *PHASES], phase_rows)
    options.record("recovery", recorded, checks)
    draw_bars("recovery", bars, options)


def shown(seconds: float) -> object:
    """Of a table."""
    return "never" if seconds == NEVER else seconds
