"""Pure: the status of a run as lines for a terminal, or as one line for a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

from bundlerun.launcher.report.members import NodeMembers, member_lines, topology_of
from bundlerun.launcher.run_folder.status import Status
from bundlerun.launcher.terminal import Ink, Terminal

_INKS: Mapping[str, Ink] = {
    "running": Ink.GOOD,
    "done": Ink.GOOD,
    "stopped": Ink.DOUBT,
    "quiet": Ink.DOUBT,
    "not begun": Ink.DOUBT,
    "lost": Ink.BAD,
    "failed": Ink.BAD,
}
_MOST_METRICS = 4
_LONG_S = 120.0
_MOST_CHECKPOINTS = 6


def status_lines(
    status: Status,
    members: Sequence[NodeMembers],
    terminal: Terminal,
    *,
    shape: str = "",
    chunks: int = 1,
    extra: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """The status for people; each line fits into the terminal.

    Args:
        members: who takes part.
        shape: of a bundle; empty where the history does not say.
        extra: more rows, a name and a text each.
    """
    rows = [*_rows(status), *extra]
    lines = []
    for name, text in rows:
        line = terminal.cut(f"{name:<12} {text}")
        ink = _INKS.get(status.state) if name == "state" else None
        if name == "failure":
            ink = Ink.BAD
        if name in ("slow", "copies"):
            ink = Ink.DOUBT
        # The name stays as it is, so that colours are no news by themselves.
        lines.append(line[:13] + terminal.inked(line[13:], ink) if ink else line)
        if name == "nodes":
            # Above what happened: of a small terminal the lower lines are cut off.
            topology = topology_of(members, shape, chunks) if shape else None
            lines += _drawn(member_lines(members, topology), terminal)
    return lines


def _drawn(rows: Iterable[str], terminal: Terminal) -> Iterator[str]:
    for index, row in enumerate(rows):
        line = terminal.cut(f"{'' if index else 'members':<12} {row}")
        yield terminal.inked(line, Ink.BAD) if "!" in row else line


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    reason = f" ({status.reason})" if status.reason else ""
    yield "state", f"{status.state}{reason}"
    yield "step", progress_text(status)
    if status.metrics:
        yield "metrics", metrics_text(status.metrics)
    if status.validation:
        yield "validation", metrics_text(status.validation)
    if status.step_s is not None:
        yield "speed", rate_text(status)
    if status.goodput is not None:
        yield "goodput", f"{status.goodput:.1%} of the time went into steps that stay"
    if status.quiet_s is not None and status.state in ("running", "quiet", "lost"):
        is_long = status.quiet_s >= _LONG_S
        ago = (
            str(timedelta(seconds=round(status.quiet_s))) if is_long else f"{status.quiet_s:.1f} s"
        )
        yield "last word", f"{ago} ago"
    yield "nodes", f"{', '.join(status.nodes) or 'none'} (round {status.round})"
    kept = [f"step {step}" for step in status.checkpoints[:_MOST_CHECKPOINTS]]
    more = len(status.checkpoints) - len(kept)
    text = ", ".join(kept) + (f", {more} more" if more > 0 else "")
    yield "checkpoint" if len(kept) < 2 else "checkpoints", text or "none"
    yield "restarts", str(status.num_restarts)
    if status.verify:
        yield "verify", status.verify
    for slow in status.slow:
        yield "slow", slow
    for short in status.short:
        yield "copies", short
    for failure in status.failures:
        yield "failure", failure
    for recovery in status.recoveries:
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in recovery.phases.items())
        then = f"; {recovery.then}" if recovery.then else ""
        told = f"{recovery.when[:19]}  {recovery.node}, {recovery.why}: {phases} s{then}"
        yield "recovery", told
    for text in status.last_events:
        yield "event", text


def progress_text(status: Status) -> str:
    """Steps, epoch, loss, and what is left."""
    of = f" of {status.num_steps}" if status.num_steps else ""
    loss = "" if status.loss is None else f", loss {_number(status.loss)}"
    left = ""
    if status.num_steps and status.step_s and status.state == "running":
        seconds = status.step_s * max(0, status.num_steps - status.step)
        left = f", {timedelta(seconds=round(seconds))} left"
    return f"{status.step}{of}, epoch {status.epoch + 1}{loss}{left}"


def rate_text(status: Status) -> str:
    """Samples per second of the last steps, and what a step takes; empty before two steps."""
    rate = status.samples_per_s
    speed = "" if rate is None else f"{_short(rate)} {status.unit}/s, "
    return "" if status.step_s is None else f"{speed}{status.step_s:.3g} s a step"


def change_line(status: Status, when: str) -> str:
    """The status in one line, for a log.

    Args:
        when: the time, for people.
    """
    parts = [f"{when}  {status.state:<9}  step {progress_text(status)}"]
    if status.samples_per_s is not None:
        parts.append(f"{_short(status.samples_per_s)} {status.unit}/s")
    if status.goodput is not None:
        parts.append(f"goodput {status.goodput:.1%}")
    parts.append(f"round {status.round}")
    if status.checkpoints:
        parts.append(f"checkpoint {status.checkpoints[0]}")
    return "  ".join(parts)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """The first metrics."""
    shown = list(metrics.items())[:_MOST_METRICS]
    more = len(metrics) - len(shown)
    text = ", ".join(f"{name} {_number(value)}" for name, value in shown)
    return text + (f", {more} more" if more > 0 else "")


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
