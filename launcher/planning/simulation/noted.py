"""What went on in the last step of a simulation, as lanes of a Gantt chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.schedule import Action, Pass
from bundlerun.launcher.planning.picture.gantt import Bar, Kind, Lane, Role, Who, lanes_of
from bundlerun.launcher.planning.simulation.passes import Rank
from bundlerun.launcher.planning.simulation.sums import Group

Span = tuple[Action, float, float]


def chosen(bundles: Iterable[Sequence[Rank]], most_ranks: int) -> list[list[Sequence[Rank]]]:
    """Those to show: of each kind that does the same, all, the first one for the others.

    Args:
        bundles: their ranks, in order of stage, then replica.
        most_ranks: of the first ones, in all; but one bundle at least.
    """
    kinds: dict[tuple[tuple[int, str, int], ...], list[Sequence[Rank]]] = {}
    for ranks in bundles:
        # Which of them are on one node counts, too: what they send each other goes another way.
        nodes = [id(rank.node) for rank in ranks]
        key = tuple(
            (nodes.index(id(rank.node)), rank.node.kind.name, rank.num_passes) for rank in ranks
        )
        kinds.setdefault(key, []).append(ranks)
    alike = list(kinds.values())
    return alike[: max(1, most_ranks // len(alike[0][0]))]


def lanes(
    kinds: Sequence[Sequence[Sequence[Rank]]],
    groups: Sequence[Group],
    since_s: float,
    chunks: Chunks,
) -> Iterator[Lane]:
    """Yields what each rank did.

    Args:
        kinds: of bundles, as `chosen` gives them.
        groups: of the sums.
        since_s: what is time 0 of the chart.
        chunks: which stage has which.
    """
    for number, alike in enumerate(kinds):
        stages = [rank.stage for rank in alike[0]]
        for place, rank in enumerate(alike[0]):
            who = Who(
                bundle=number,
                stage=rank.stage,
                replica=rank.replica,
                where=rank.node.kind.name,
                count=sum(ranks[place].count * ranks[place].node.count for ranks in alike),
                has_replicas=stages.count(rank.stage) > 1,
            )
            for role, bars in (
                (Role.PASSES, _own(rank)),
                (Role.MESSAGES, _messages(rank, chunks)),
                (Role.SUMS, _sums(rank, groups)),
            ):
                moved = (b._replace(begin=b.begin - since_s, end=b.end - since_s) for b in bars)
                yield from lanes_of(who, role, moved)


def _own(rank: Rank) -> Iterator[Bar]:
    """What it does itself."""
    recorded = rank.recorded
    for action, begin, end in recorded.spans:
        yield Bar.of_pass(action, begin, end)
    for action, begin, end in recorded.handed:
        yield Bar(begin, end, Kind.HANDOVER, action.microbatch, action.chunk)
    begin, end = recorded.update_begun[-1], recorded.ended[-1]
    updated = max(begin, end - rank.fixed_s)
    if updated > begin:
        yield Bar(begin, updated, Kind.UPDATE)
    if end > updated:
        yield Bar(updated, end, Kind.OTHER, name="begin and end of a step")


def _messages(rank: Rank, chunks: Chunks) -> Iterator[Bar]:
    """What it sends; what takes no time is left out."""
    for (kind, microbatch, chunk), sendings in rank.sendings.items():
        for sending in sendings:
            assert sending.wire.noted is not None
            begin, end = sending.wire.noted[sending.number]
            if end > begin:
                what = "activation" if kind is Pass.FORWARD else "gradient"
                yield Bar(
                    begin,
                    end,
                    Kind.MESSAGE,
                    microbatch,
                    chunks.own_of(chunk),
                    round(sending.num_bytes),
                    name=f"{what} to stage {sending.to.stage}",
                )


def _sums(rank: Rank, groups: Sequence[Group]) -> Iterator[Bar]:
    """The sums that it leads on its node."""
    for group in groups:
        assert group.noted is not None
        for number, part in enumerate(group.parts):
            if part.ranks[0] is not rank:
                continue
            for (leg, of, bucket), (begin, end) in group.noted.items():
                if of == number and end > begin:
                    num_bytes = group.buckets[bucket].num_bytes
                    yield Bar(begin, end, leg, num_bytes=num_bytes, name=f"{leg.value} {bucket}")
