"""What bounds a run's steps, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundlerun.launcher.why.links import BadLink, LinkFault
from bundlerun.launcher.why.pace import Bound, Pace, Slow, SlowBy, Wire
from bundlerun.launcher.why.sums import RankSums

_BOUNDS: Mapping[Bound, str] = {
    Bound.DATA: "data",
    Bound.COMPUTE: "compute of stage {stage}",
    Bound.EXCHANGE: "the exchange of gradients",
    Bound.PIPELINE: "the pipeline: stages wait for each other",
    Bound.OPTIMIZER: "the optimizer of stage {stage}",
    Bound.SNAPSHOT: "snapshots",
    Bound.CHECKPOINT: "checkpoints",
    Bound.VALIDATION: "validation",
    Bound.REST: "what is in no phase (Python, logs, hooks of the loop)",
}
_MENDS: Mapping[Bound, str] = {
    Bound.DATA: "more --loader-workers, a faster folder, or --decode fast",
    Bound.EXCHANGE: "a larger --batch-size, --exchange-dtype bfloat16, or a faster network",
    Bound.PIPELINE: "a larger --batch-size or a smaller --microbatch-size",
    Bound.LINK: "--precision bfloat16, another --cut, or a faster network",
    Bound.SNAPSHOT: "--snapshot-steps with a larger number",
    Bound.CHECKPOINT: "a larger --checkpoint-steps, or a faster --run-dir",
}
_SLOW: Mapping[SlowBy, str] = {
    SlowBy.PROCESSOR: "is ready to run and its core has other work: other programs on that node?",
    SlowBy.DATA: "waits {times} as long for data as its peers",
    SlowBy.COMPUTE: "computes {times} as long as its peers",
    SlowBy.OPTIMIZER: "takes {times} as long for its optimizer as its peers",
    SlowBy.REST: "takes {times} as long as its peers",
}
_UNEVEN = 1.5
_STARVED = 0.3


def bound_text(pace: Pace) -> str:
    """What bounds the step, with its share."""
    if pace.bound is Bound.LINK and pace.wire is not None:
        what = f"the link from {pace.wire.source} to {pace.wire.to}"
    else:
        what = _BOUNDS.get(pace.bound, "links").format(stage=pace.stage)
    return f"{what}, {pace.share:.0%} of the time"


def pace_text(pace: Pace, ranks: Sequence[RankSums]) -> str:
    """One line for the log."""
    parts = [f"bound by {bound_text(pace)}"]
    if pace.slow is not None:
        parts.append(slow_text(pace.slow, ranks))
    if pace.wire is not None and pace.bound in (Bound.LINK, Bound.EXCHANGE):
        parts.append(wire_text(pace.wire))
    if pace.link is not None:
        parts.append(link_text(pace.link))
    if pace.starved >= _STARVED:
        parts.append(f"ranks had no core for {pace.starved:.0%} of the time")
    return "; ".join(parts)


def pace_lines(pace: Pace, ranks: Sequence[RankSums]) -> list[str]:
    """All that is to be said, a line each, with what may be done."""
    lines = [f"bound        {bound_text(pace)}"]
    mend = _mend(pace)
    if mend:
        lines.append(f"to try       {mend}")
    slow = "none: all are alike" if pace.slow is None else slow_text(pace.slow, ranks)
    lines.append(f"slow rank    {slow}")
    if pace.wire is not None:
        lines.append(f"busiest way  {wire_text(pace.wire)}")
    if pace.link is not None:
        lines.append(f"bad link     {link_text(pace.link)}")
    if len(pace.microbatch_s) > 1:
        each = ", ".join(f"{1000 * s:.3g} ms" for s in pace.microbatch_s)
        lines.append(f"stages       {each} a micro-batch")
    if pace.starved >= _STARVED:
        lines.append(
            f"processors   ranks were ready and had no core for {pace.starved:.0%} of the time"
        )
    return lines


def _mend(pace: Pace) -> str:
    if pace.bound is Bound.COMPUTE and pace.uneven >= _UNEVEN:
        return (
            f"another --cut: a stage takes {pace.uneven:.1f} times as long as the fastest "
            "(bundlerun cuts shows where)"
        )
    return _MENDS.get(pace.bound, "")


def slow_text(slow: Slow, ranks: Sequence[RankSums]) -> str:
    """A rank that holds the others up."""
    who = next((rank.who for rank in ranks if rank.rank == slow.rank), f"rank {slow.rank}")
    times = f"{slow.times:.1f} times" if slow.times < 100 else "far more than 100 times"
    return f"{who} {_SLOW[slow.why].format(times=times)} ({slow.share:.0%} of the time)"


def wire_text(wire: Wire) -> str:
    """The busiest way between two nodes."""
    return (
        f"{wire.source} to {wire.to}, busy for {wire.share:.0%} of the time with "
        f"{wire.bytes_per_s * 8 / 1e6:.3g} Mbit/s"
    )


def link_text(link: BadLink) -> str:
    """A link between two nodes that is worse than the others."""
    way = f"the link from {link.source} to {link.to}"
    busy = f"busy for {link.share:.0%} of the time"
    match link.why:
        case LinkFault.LOSSY:
            return (
                f"{way} loses: {link.value:.2%} of what it sends is sent again "
                f"({link.retransmitted:.0f} segments), on others {link.usual:.2%}; {busy}"
            )
        case LinkFault.SLOW:
            return (
                f"{way} is slow: {link.value * 8 / 1e6:.3g} Mbit/s while it is busy, others "
                f"{link.usual * 8 / 1e6:.3g} Mbit/s; {busy}"
            )
        case LinkFault.FAR:
            return (
                f"{way} is slow to answer: {1000 * link.value:.3g} ms there and back at best, "
                f"others {1000 * link.usual:.2g} ms; {busy}"
            )
