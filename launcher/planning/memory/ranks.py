"""The memory that the ranks of a plan need, worked out before any of them starts.

    parameters, buffers      as the stage has them
    gradients, optimizer     of what is trained
    activations, wires       of micro-batches in flight, by the schedule; messages on their way
    working                  what one pass has at once beside
    buckets                  sums of gradients, and what an exchange needs
    program, loader          interpreter and torch; loading processes
    snapshot                 two slots of the rank's share, in /dev/shm

or, before there is any of that but program and loader:

    start                    the whole model, of which each rank keeps its stage
    initial                  the weights that it begins with, as they are read from their files
    check                    the first rank compares the stages with it

What several processes of a node map counts for each by its share (PSS), so that a node needs what
its ranks need together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bundlerun.launcher.choices import Reading
from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.launcher.layout.schedule import Order, Pipeline
from bundlerun.launcher.planning.candidate import Candidate, RankMemory, Request
from bundlerun.launcher.planning.cluster import Cluster, NodeKind
from bundlerun.launcher.planning.memory.held import Kept, most_held, order_of
from bundlerun.launcher.planning.model_costs import ModelCosts, Piece, Profile
from bundlerun.launcher.planning.placement import Placement, pipeline_of, placement

_MIB = 1 << 20
_BUCKET_BYTES = 1_000_000
"""Least size of a bucket; see `workers.sync.bucket`."""
_POSTED_AHEAD = 2
"""Messages that a receiver has memory for before they come."""
_SLOTS = 2
_RECEIVED_AT_ONCE = 3
"""Buffers of an exchange, used in turn."""
_MOST_DIRECT_NODES = 16
"""Up to which nodes send each other pieces of rounded sums, see `workers.sync.exchange`."""
_HELD = 0.1
"""Of what is alive: free pieces between live ones, of which the next tensors need other sizes. Of
20 models ranks had up to 0.25 of it, see the benchmark `memory_forecast`."""
_CHECKED_SAMPLES = 2
"""With which stages are compared with the model."""
PROGRAM_BYTES = 700 * _MIB
"""Of a process that has imported all, where the profile does not say. Ranks are forked from one:
all of a node have it together."""
OWN_BYTES = 42 * _MIB
"""Of that, what a rank has for itself after all: pages that it has written to, and new ones."""
LOADER_BYTES = 45 * _MIB
"""Of a loading process, beside what it reads."""
_READ_AHEAD = 2
"""Micro-batches per loading process."""


@dataclass(frozen=True, slots=True)
class _Case:
    """All that the parts of a rank's memory are worked out from."""

    profile: Profile
    costs: ModelCosts
    candidate: Candidate
    cluster: Cluster
    request: Request
    place: Placement
    pipeline: Pipeline

    @property
    def on_host(self) -> bool:
        """Whether devices are CPU slots, whose memory is that of the node."""
        return any(kind.host.cores for kind in self.cluster.kinds)

    def chunks_of(self, stage: int) -> list[int]:
        """The chunks of the model that a stage has."""
        return list(self.pipeline.chunks.on_stage(stage))

    def crosses(self, chunk: int) -> bool:
        """Whether what a chunk sends on may go to another node."""
        return self.pipeline.chunks.stage_of(chunk) in self.place.crossings

    def bounds(self, chunk: int) -> tuple[int, int]:
        """The first piece of a chunk, and the first one after it."""
        cuts = self.candidate.cuts
        first = cuts[chunk - 1] + 1 if chunk else 0
        end = cuts[chunk] + 1 if chunk < len(cuts) else len(self.costs.pieces)
        return first, end

    def sent(self, chunk: int) -> tuple[int, int]:
        """Bytes of what goes from a chunk to the next, and of the gradients that come back."""
        if not 0 <= chunk < len(self.candidate.cuts):
            return 0, 0
        boundary = self.costs.boundaries[self.candidate.cuts[chunk]]
        return boundary.forward_bytes, boundary.backward_bytes

    def late(self, chunk: int) -> int:
        """Bytes of what a chunk is sent that are counted with what its pieces keep."""
        return self.costs.boundaries[self.candidate.cuts[chunk - 1]].late_bytes if chunk else 0

    def order(self, stage: int) -> Order:
        """Of the replica that does the most."""
        count = self.place.microbatches(self.request.batch_size, self.candidate.samples)
        return order_of(self.pipeline, stage, count)


def rank_memory(
    profile: Profile, candidate: Candidate, cluster: Cluster, request: Request
) -> tuple[RankMemory, ...]:
    """What a rank of each stage needs: the replica that needs the most.

    Args:
        profile: of the model.
        candidate: a plan.
        cluster: what it is for, enough for one bundle.
        request: batch size, and whether there are snapshots.
    """
    case = _Case(
        profile=profile,
        costs=profile.at(candidate.samples),
        candidate=candidate,
        cluster=cluster,
        request=request,
        place=placement(candidate.shape, cluster),
        pipeline=pipeline_of(candidate, cluster),
    )
    parts = case.costs.parts(candidate.cuts)
    found = tuple(
        _of_stage(case, stage, [parts[chunk] for chunk in case.chunks_of(stage)])
        for stage in range(candidate.shape.num_stages)
    )
    return _with_buddies(case, found)


def _with_buddies(case: _Case, found: tuple[RankMemory, ...]) -> tuple[RankMemory, ...]:
    """With the copies of stages that one node alone runs: those of the one bundle there is."""
    num_others = min(case.request.snapshot_copies, case.candidate.shape.size) - 1
    if case.place.num_bundles > 1 or not case.place.crossings or num_others < 1:
        return found
    # Whose copies a node takes depends on the order of the nodes: the largest is enough for any.
    more = num_others * max(rank.snapshot for rank in found)
    return tuple(replace(rank, snapshot=rank.snapshot + more) for rank in found)


def _of_stage(case: _Case, stage: int, parts: Sequence[Piece]) -> RankMemory:
    trained = sum(part.trained_bytes for part in parts)
    optimizer = round(trained * case.profile.update.state_share)
    recomputes = stage in case.candidate.recompute
    activations = _activations(case, stage, parts, recomputes=recomputes)
    working = max(_working(case, chunk, recomputes=recomputes) for chunk in case.chunks_of(stage))
    found = RankMemory(
        parameters=sum(part.parameter_bytes for part in parts),
        buffers=sum(part.buffer_bytes for part in parts),
        gradients=trained,
        optimizer=optimizer,
        activations=activations,
        working=working,
        update=round(trained * case.profile.update.working_share),
        buckets=_buckets(case, stage, trained),
        wires=_wires(case, stage),
        program=OWN_BYTES + _shared_program(case.profile, max(map(sum, case.place.nodes))),
        snapshot=0,
        loader=_loader(case, stage),
        start=_start(case),
        initial=_initial(case, stage, parts),
        check=_check(case) if stage == 0 else 0,
    )
    if case.on_host:
        alive = found.parameters + found.gradients + found.optimizer + activations + working
        found = replace(found, held=round(_HELD * alive))
    if not case.request.has_snapshot:
        return found
    return replace(found, snapshot=_snapshot(case, stage, found))


def _shared_program(profile: Profile, num_ranks: int) -> int:
    """A rank's share of the process that all are forked from, which has one, too."""
    return (profile.program_bytes or PROGRAM_BYTES) // (num_ranks + 1)


# --- passes


def _activations(case: _Case, stage: int, parts: Sequence[Piece], *, recomputes: bool) -> int:
    kept = []
    for chunk, part in zip(case.chunks_of(stage), parts, strict=True):
        # What comes by shared memory counts with the wires: it is the memory of both ends.
        given = case.sent(chunk - 1)[0] if chunk else 0
        own = 0 if case.on_host and chunk and not case.crosses(chunk - 1) else given
        if recomputes:
            kept.append(Kept(forward=own if chunk else case.costs.input_bytes))
        else:
            saved = max(0, part.kept_bytes - case.late(chunk))
            kept.append(Kept(forward=saved + own, split=part.split_bytes))
    return most_held(case.order(stage), kept)


def _working(case: _Case, chunk: int, *, recomputes: bool) -> int:
    """The most that a pass has beside what is held when it is in the middle."""
    first, end = case.bounds(chunk)
    # An early piece's own peak comes before what later ones keep, or after that is let go.
    kept = most = 0
    for piece in case.costs.pieces[first:end]:
        kept += piece.kept_bytes
        most = max(most, kept + piece.peak_bytes)
    return most if recomputes else most - kept


def _wires(case: _Case, stage: int) -> int:
    """Messages from and to other stages, as far as they are not with the activations."""
    total = 0
    for chunk in case.chunks_of(stage):
        for other in (chunk - 1, chunk):
            total += _link(case, other, is_sender=other == chunk)
    return total


def _link(case: _Case, chunk: int, *, is_sender: bool) -> int:
    """One end of the link from a chunk to the next one, and of the way back."""
    forward, backward = case.sent(chunk)
    if not forward and not backward:
        return 0
    if case.on_host and not case.crosses(chunk):
        # Slots: as many as were ever between the sender's forward and the receiver's last use.
        sender = case.pipeline.chunks.stage_of(chunk)
        own = case.pipeline.chunks.own_of(chunk)
        one = [Kept(forward=int(number == own)) for number in range(case.candidate.chunks)]
        slots = most_held(case.order(sender), one)
        return (slots * forward + _POSTED_AHEAD * backward) // 2
    # One is on its way out while the next is made; two may come while one is worked on.
    coming, going = (backward, forward) if is_sender else (forward, backward)
    return _POSTED_AHEAD * coming + going


# --- sums of gradients


def _buckets(case: _Case, stage: int, trained: int) -> int:
    """What sums need beside the gradients themselves, for the rank of a node that leads them."""
    place, nodes = case.place, case.cluster.num_nodes
    num_replicas = place.num_bundles * case.candidate.shape.widths[stage]
    if num_replicas == 1 or not trained:
        return 0
    bucket = min(trained, max(case.request.bucket_bytes, _BUCKET_BYTES))
    # The first backward's gradients are copied in, bucket by bucket.
    found = bucket
    if not case.on_host:
        return found
    mates = place.most_mates(stage)
    if case.candidate.sync != "flat" and mates > 1:
        shards = mates if case.candidate.sync == "sharded" else 1
        # A leader reads its shard of all, and all read its sum: each page counts by its share.
        found += round(trained * ((mates - 1) / 2 / shards + 1 / mates))
        # Others read its own gradients, too.
        found -= round(trained * (shards - 1) / shards / 2)
    if nodes > 1 and case.candidate.sync != "flat":
        found += _exchange(trained, bucket, nodes, case.request.exchange)
    return found


def _is_rounded(case: _Case) -> bool:
    return not case.request.exchange.is_exact


def _exchange(trained: int, bucket: int, nodes: int, form: ExchangeForm) -> int:
    """Buffers to receive into; what rounding has lost, and what is sent in its place."""
    if form.is_exact:
        return _RECEIVED_AT_ONCE * bucket if nodes == 2 else 0
    share = form.share
    kept = trained + round(share * trained)
    if not form.rank and (nodes <= _MOST_DIRECT_NODES or not form.can_add):
        # As it arrives, and as numbers again.
        kept += round((_RECEIVED_AT_ONCE * share + 1) * bucket)
    return kept


# --- the start


def _start(case: _Case) -> int:
    """The whole model, as each rank makes it; a model that is not cut is the stage itself.

    That one counts only where there is something beside it.
    """
    if not case.candidate.cuts and case.request.begins_with is Reading.NOTHING:
        return 0
    return _state(case.costs.part(0, len(case.costs.pieces)))


def _state(part: Piece) -> int:
    return part.parameter_bytes + part.buffer_bytes


def _initial(case: _Case, stage: int, parts: Sequence[Piece]) -> int:
    """Weights of files, taken to have the model's own types.

    What is read tensor by tensor is mapped, so pages of one file count once for all replicas on a
    node. It is there until the trainer is made, and all that it has read is in its pages by then.
    """
    match case.request.begins_with:
        case Reading.NOTHING:
            return 0
        case Reading.BY_TENSOR:
            return -(-sum(map(_state, parts)) // case.place.mates(stage))
        case Reading.WHOLE:
            return _state(case.costs.part(0, len(case.costs.pieces)))


def _check(case: _Case) -> int:
    """What comparing the stages with the model needs, see `workers.model.fidelity`.

    The gradients of the model itself are there when a backward through the stages begins, which
    makes them a second time while it lets go what was kept. Buffers are copied, to be put back.
    """
    if not case.candidate.cuts:
        return 0
    costs = case.profile.at(min(case.candidate.samples, _CHECKED_SAMPLES))
    count = len(costs.pieces)
    whole = costs.part(0, count)
    most = whole.trained_bytes
    made = whole.trained_bytes - round(costs.total("trained_bytes", 0, count))  # what is shared
    kept = whole.kept_bytes
    for piece in reversed(costs.pieces):
        most = max(most, made + kept + piece.peak_bytes)
        made += piece.trained_bytes
        kept -= piece.kept_bytes
    return whole.buffer_bytes + whole.trained_bytes + most


# --- beside


def _snapshot(case: _Case, stage: int, rank: RankMemory) -> int:
    state = rank.parameters + rank.buffers + rank.optimizer
    feedback = rank.gradients if _is_rounded(case) and case.cluster.num_nodes > 1 else 0
    share = -(-state // case.place.mates(stage))
    has_replicas = case.place.num_bundles * max(case.candidate.shape.widths) > 1
    # Verified states are in two slots of their own.
    kept = share if case.request.keeps_verified and has_replicas else 0
    return _SLOTS * (share + feedback + kept)


def _loader(case: _Case, stage: int) -> int:
    """Of the loading processes of a rank; those of the first stage have some."""
    most = max((kind.loaders for kind in case.cluster.kinds), default=0)
    if stage or not most:
        return 0
    count = max(1, most // max(1, case.place.most_mates(0)))
    one = case.costs.input_bytes + case.costs.target_bytes
    return count * (LOADER_BYTES + _READ_AHEAD * one)


def node_total(
    ranks: Sequence[RankMemory], counts: Sequence[int], kind: NodeKind, candidate: Candidate
) -> int:
    """Bytes that the memory of a node gives to all its ranks, and what they are forked from.

    Args:
        ranks: of each stage, that which needs the most.
        counts: of each stage, the node's ranks.
        kind: of the node.
        candidate: the plan.
    """
    is_led = kind.host.cores > 0 and candidate.sync == "local-master"
    start = later = 0
    for rank, count in zip(ranks, counts, strict=True):
        start += count * (rank.start + rank.initial + rank.program + rank.loader)
        state = replace(rank, start=0, initial=0).needed(on_host=kind.host.cores > 0)
        later += count * state
        # Not all lead: what leaders read of others is counted with them, and with each but once.
        if is_led and count > 1:
            led = rank.gradients * ((count - 1) / 2 + 1 / count)
            later -= round(count * led - rank.gradients)
    # All ranks make the model at one time. The process that they are forked from has as large a
    # share of the program as each of them.
    return max(start, later) + max((rank.program - OWN_BYTES for rank in ranks), default=0)
