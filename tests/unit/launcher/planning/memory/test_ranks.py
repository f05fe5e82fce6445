"""What ranks need, on models and clusters small enough to add up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.choices import Reading
from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.candidate import Candidate, RankMemory, Request
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.memory.fits import (
    Room,
    fits,
    largest_samples,
    node_memory,
    remedies,
    shortfalls,
)
from bundlerun.launcher.planning.memory.ranks import OWN_BYTES, rank_memory
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    UpdateCosts,
)

KEPT, SENT, PARAMETERS = 1000, 100, 10_000
"""Of a piece, for one sample."""
PROGRAM = 60
PLAN = Candidate(
    shape=Shape((1, 1, 1, 1)), cuts=(0, 1, 2), schedule="1f1b", sync="local-master", samples=1
)
ALONE = Request(batch_size=16, has_snapshot=False)


def profile(num_pieces: int = 4) -> Profile:
    piece = Piece(
        kept_bytes=KEPT,
        peak_bytes=10,
        split_bytes=400,
        parameter_bytes=PARAMETERS,
        trained_bytes=PARAMETERS,
    )
    names = [f"b{n}" for n in range(num_pieces - 1)]
    costs = ModelCosts(
        samples=1,
        pieces=(piece,) * num_pieces,
        boundaries=tuple(Boundary(name=n, forward_bytes=SENT, backward_bytes=SENT) for n in names),
        input_bytes=7,
    )
    key = ProfileKey(model="m", device="cpu", versions="1", precision="float32")
    return Profile(
        key=key, by_samples=(costs,), update=UpdateCosts(state_share=1.0), program_bytes=PROGRAM
    )


def cluster(devices: int = 4, count: int = 1, **sizes: int) -> Cluster:
    kind = NodeKind(name="a", count=count, devices=devices, **sizes)
    return Cluster(kinds=(kind,), between=Link(bytes_per_s=1e9))


def on_cpu(cluster: Cluster) -> Cluster:
    kinds = tuple(replace(kind, host=Host(cores=4)) for kind in cluster.kinds)
    return replace(cluster, kinds=kinds)


def of(plan: Candidate, where: Cluster | None = None) -> tuple[RankMemory, ...]:
    return rank_memory(profile(len(plan.cuts) + 1), plan, where or cluster(), ALONE)


def test_1f1b_holds_as_many_microbatches_as_there_are_stages_to_come() -> None:
    kept = [rank.activations for rank in of(PLAN)]
    assert kept == [4 * KEPT, 3 * (KEPT + SENT), 2 * (KEPT + SENT), KEPT + SENT]


def test_gpipe_holds_all_microbatches() -> None:
    kept = [rank.activations for rank in of(replace(PLAN, schedule="gpipe"))]
    assert kept == [16 * KEPT] + [16 * (KEPT + SENT)] * 3


def test_zero_bubble_holds_activations_and_gradients_until_the_weight_pass() -> None:
    kept = [rank.activations for rank in of(replace(PLAN, schedule="zero-bubble"))]
    # The first stage's backward is whole. The last one puts three weight passes off.
    assert kept[0] == 4 * KEPT
    assert kept[3] == 4 * (KEPT + SENT) + 4 * 400


def test_interleaved_chunks_are_counted_each_with_its_own() -> None:
    plan = replace(PLAN, shape=Shape((1, 1)), chunks=2, schedule="interleaved", cuts=(0, 1, 2))
    front, rear = of(plan, cluster(2))
    # F0 F1 F0.1 F1.1 F2: three of the first chunk, which gets no input, two of the second.
    assert front.activations == 3 * KEPT + 2 * (KEPT + SENT)
    assert rear.activations == 3 * (KEPT + SENT)


def test_recomputation_keeps_inputs_and_one_microbatch_in_work() -> None:
    first, second, *_ = of(replace(PLAN, recompute=frozenset({0, 1})))
    assert (first.activations, first.working) == (4 * 7, KEPT + 10)
    assert (second.activations, second.working) == (3 * SENT, KEPT + 10)


def test_what_a_stage_is_sent_counts_once_though_its_pieces_keep_it() -> None:
    made = profile()
    costs = made.by_samples[0]
    late = tuple(replace(boundary, late_bytes=SENT) for boundary in costs.boundaries)
    made = replace(made, by_samples=(replace(costs, boundaries=late),))
    assert rank_memory(made, PLAN, cluster(), ALONE)[3].activations == KEPT


def test_a_peak_before_most_is_kept_is_no_peak_of_the_stage() -> None:
    made = profile()
    costs = made.by_samples[0]
    pieces = (replace(costs.pieces[0], peak_bytes=KEPT // 2), *costs.pieces[1:])
    made = replace(made, by_samples=(replace(costs, pieces=pieces),))
    plan = replace(PLAN, shape=Shape((1, 1)), cuts=(1,))
    assert rank_memory(made, plan, cluster(), ALONE)[0].working == 10


def test_a_replica_of_a_wide_stage_holds_its_own_microbatches_only() -> None:
    wide = replace(PLAN, shape=Shape((2, 1)), cuts=(0,))
    front, rear = of(wide, cluster(3))
    assert front.activations == 2 * KEPT
    assert rear.activations == KEPT + SENT


def test_slots_of_shared_memory_count_half_for_each_end() -> None:
    first, second, *_ = of(PLAN, on_cpu(cluster()))
    # Four are on the way or in use between the first two stages, three between the next.
    assert first.wires == (4 * SENT + 2 * SENT) // 2
    assert second.wires == (4 * SENT + 2 * SENT) // 2 + (3 * SENT + 2 * SENT) // 2
    assert second.activations == 3 * KEPT


def test_an_allocator_keeps_a_tenth_of_what_is_alive_on_a_cpu() -> None:
    first, *_ = of(PLAN, on_cpu(cluster()))
    alive = 3 * PARAMETERS + 4 * KEPT + 10
    assert first.held == alive // 10
    assert first.device == alive + first.held + first.wires
    assert of(PLAN)[0].held == 0


def test_gradients_of_several_replicas_have_sums_beside_them() -> None:
    plan = replace(PLAN, shape=Shape((1,)), cuts=())
    alone = rank_memory(profile(1), plan, on_cpu(cluster(1)), ALONE)[0]
    assert (alone.gradients, alone.buckets) == (PARAMETERS, 0)
    led = rank_memory(profile(1), plan, on_cpu(cluster(4)), ALONE)[0]
    # A bucket, its share of what it reads of three others, and of the sum that four read.
    assert led.buckets == PARAMETERS + 3 * PARAMETERS // 2 + PARAMETERS // 4
    flat = rank_memory(profile(1), replace(plan, sync="flat"), on_cpu(cluster(4)), ALONE)[0]
    assert flat.buckets == PARAMETERS


def test_a_node_has_one_sum_however_many_ranks_read_it() -> None:
    plan = replace(PLAN, shape=Shape((1,)), cuts=())
    where = on_cpu(cluster(4))
    ranks = rank_memory(profile(1), plan, where, ALONE)
    (node,) = node_memory(ranks, plan, where)
    # Four ranks and what they are forked from have the program together.
    each = PARAMETERS * 2 + KEPT + 10 + OWN_BYTES + PARAMETERS + (3 * PARAMETERS + KEPT + 10) // 10
    assert node.host == 4 * each + 5 * PARAMETERS + PROGRAM


def test_rounding_errors_are_kept_and_in_the_snapshot() -> None:
    plan = replace(PLAN, shape=Shape((1,)), cuts=())
    where = on_cpu(cluster(1, count=2))
    plain = Request(batch_size=16)
    rounded = replace(plain, exchange=ExchangeForm("bfloat16"))
    before, after = (rank_memory(profile(1), plan, where, r)[0] for r in (plain, rounded))
    assert before.snapshot == 2 * 2 * PARAMETERS
    assert after.snapshot == 2 * 3 * PARAMETERS
    # Three buffers are half as long, one has the numbers again; the error, and what is sent, stay.
    assert after.buckets - before.buckets == PARAMETERS * 3 // 2 - 3 * PARAMETERS // 2 + PARAMETERS


def test_the_snapshot_is_shared_out_among_the_replicas_of_a_node() -> None:
    plan = replace(PLAN, shape=Shape((1,)), cuts=())
    found = rank_memory(profile(1), plan, cluster(4), Request(batch_size=16))
    assert found[0].snapshot == 2 * 2 * PARAMETERS // 4


@pytest.mark.parametrize(("num_copies", "times"), [(1, 1), (2, 2), (3, 3)])
def test_a_bundle_that_spans_nodes_has_its_stages_on_others_besides(
    num_copies: int, times: int
) -> None:
    wanted = replace(ALONE, has_snapshot=True, snapshot_copies=num_copies)
    found = rank_memory(profile(), PLAN, cluster(1, count=4), wanted)
    assert found[0].snapshot == times * 2 * 2 * PARAMETERS
    # Another bundle on other nodes is a copy, and on one node there is nowhere to copy to.
    for there in (cluster(4, count=2), cluster(4)):
        assert rank_memory(profile(), PLAN, there, wanted)[0].snapshot == 2 * 2 * PARAMETERS


def test_bundles_that_span_small_nodes_hold_one_more_over_a_slow_link() -> None:
    plan = replace(PLAN, schedule="eager-1f1b")
    # A node of two devices: the link from the second stage to the third is slow.
    many = Request(batch_size=16 * 5000, has_snapshot=False)
    ranks = rank_memory(profile(), plan, cluster(2, count=10_000), many)
    kept = [rank.activations for rank in ranks]
    assert kept == [5 * KEPT, 4 * (KEPT + SENT), 2 * (KEPT + SENT), KEPT + SENT]


def test_what_does_not_fit_is_said_with_its_stage_and_bytes() -> None:
    whole = of(PLAN)[0].device
    assert fits(profile(), PLAN, cluster(device_bytes=whole), ALONE)
    (short,) = shortfalls(of(PLAN), PLAN, cluster(device_bytes=whole - 3))
    assert (short.room, short.stage, short.over) == (Room.DEVICE, 0, 3)


def test_the_memory_of_the_node_and_its_shared_memory_end_too() -> None:
    request = Request(batch_size=16)
    where = on_cpu(cluster(host_bytes=1000, shm_bytes=2000))
    found = shortfalls(rank_memory(profile(), PLAN, where, request), PLAN, where)
    assert [short.room for short in found] == [Room.HOST, Room.SHM]
    assert found[1].needed == 4 * 2 * 2 * PARAMETERS


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_largest_microbatch_is_the_largest_that_fits(size: int) -> None:
    room = max(rank.device for rank in of(replace(PLAN, samples=size)))
    found = largest_samples(profile(), PLAN, cluster(device_bytes=room), ALONE, (1, 2, 4, 8, 16))
    assert found == size


def test_no_size_fits_where_parameters_alone_do_not() -> None:
    assert largest_samples(profile(), PLAN, cluster(device_bytes=9), ALONE, (1, 2)) == 0


def test_each_remedy_is_one_that_fits() -> None:
    plan = replace(PLAN, shape=Shape((1, 1)), cuts=(1,), samples=4)
    room = rank_memory(profile(), plan, cluster(), ALONE)[0].device
    where = cluster(device_bytes=room - 1)
    found = remedies(profile(), plan, where, ALONE, (1, 2, 4, 8))
    assert found.words == ["--microbatch-size 2", "--recompute 0", "--shape 1,1,1"]


def test_a_million_ranks_are_as_quick_as_a_few() -> None:
    ranks = of(PLAN, cluster(8, count=125_000))
    assert len(ranks) == 4


def test_the_step_of_an_optimizer_comes_when_the_activations_have_gone() -> None:
    before = profile()
    update = replace(before.update, working_share=0.1)
    (*_, small), (*_, large) = (
        rank_memory(replace(before, update=one), PLAN, cluster(), ALONE)
        for one in (update, replace(update, working_share=10.0))
    )
    assert small.update == PARAMETERS // 10 < small.activations + small.working
    assert large.device - small.device == 10 * PARAMETERS - (small.activations + small.working)


def with_much_state(where: Cluster) -> tuple[RankMemory, ...]:
    """Where an optimizer has ten times what it trains."""
    made = replace(profile(), update=UpdateCosts(state_share=10.0))
    return rank_memory(made, PLAN, where, ALONE)


def test_at_the_start_each_rank_has_the_whole_model_and_none_of_its_state() -> None:
    front, *others = of(PLAN, on_cpu(cluster()))
    large, *_ = with_much_state(on_cpu(cluster()))
    whole = 4 * PARAMETERS
    # Beside it the first rank has the gradients of all parameters twice, and compares them.
    assert (front.start, front.check) == (whole, 2 * whole)
    assert [(rank.start, rank.check) for rank in others] == [(whole, 0)] * 3
    own = front.program + front.loader
    assert front.total == own + 3 * whole > own + front.device
    assert others[0].total == own + whole > own + others[0].device
    # What is left out where memory is short is not needed.
    assert front.needed(on_host=True) == own + whole
    assert large.total == large.needed(on_host=True) == own + large.device > own + 3 * whole


def test_a_model_that_is_not_cut_is_the_stage_itself() -> None:
    alone = rank_memory(profile(1), replace(PLAN, shape=Shape((1,)), cuts=()), cluster(1), ALONE)
    assert (alone[0].start, alone[0].check) == (0, 0)


def test_weights_that_a_run_begins_with_are_beside_the_whole_model() -> None:
    whole, where = 4 * PARAMETERS, on_cpu(cluster())

    def starting(how: Reading, plan: Candidate = PLAN, on: Cluster = where) -> RankMemory:
        request = replace(ALONE, begins_with=how)
        # The first rank compares gradients, too; the last one does nothing else.
        return rank_memory(profile(len(plan.cuts) + 1), plan, on, request)[-1]

    own, other = starting(Reading.BY_TENSOR), starting(Reading.WHOLE)
    assert starting(Reading.NOTHING).initial == 0
    # Of a file that is mapped, its stage's; else the whole file.
    assert (own.start, own.initial, other.initial) == (whole, PARAMETERS, whole)
    assert own.total == own.needed(on_host=True) == own.program + own.loader + whole + PARAMETERS
    assert other.total == other.program + other.loader + 2 * whole
    # The model that is not cut is whole, too.
    alone = replace(PLAN, shape=Shape((1,)), cuts=())
    assert (starting(Reading.WHOLE, alone).start, starting(Reading.WHOLE, alone).initial) == (
        PARAMETERS,
        PARAMETERS,
    )
    # Two replicas on a node see the same pages of a file.
    eight = on_cpu(cluster(8))
    assert starting(Reading.BY_TENSOR, on=eight).initial == PARAMETERS // 2
    assert starting(Reading.WHOLE, on=eight).initial == whole
    ranks = rank_memory(profile(), PLAN, where, replace(ALONE, begins_with=Reading.WHOLE))
    (node,) = node_memory(ranks, PLAN, where)
    assert node.host == 4 * 2 * whole + 5 * ranks[0].program - OWN_BYTES


def test_comparing_two_samples_has_the_activations_of_a_pass_beside_gradients() -> None:
    made = profile()
    costs = made.by_samples[0]
    # Gradients are made from the last piece to the first; the second has most at once.
    shown = [(0, 500), (10, 9000), (70, 3000), (40, 2000)]
    pieces = tuple(
        replace(piece, kept_bytes=kept, trained_bytes=size, parameter_bytes=size, buffer_bytes=3)
        for piece, (size, kept) in zip(costs.pieces, shown, strict=True)
    )
    made = replace(made, by_samples=(replace(costs, pieces=pieces),))
    whole = replace(PLAN, samples=4)
    found = rank_memory(made, whole, cluster(), ALONE)[0]
    assert found.start == 120 + 4 * 3
    # Of two samples of the four: all is kept when the backward begins, with what it has at once.
    assert found.check == 4 * 3 + 120 + 2 * (500 + 9000 + 3000 + 2000 + 10)


def test_a_node_has_the_start_of_all_its_ranks_or_what_they_have_later() -> None:
    where = on_cpu(cluster())
    small, large = of(PLAN, where), with_much_state(where)
    (node,) = node_memory(small, PLAN, where)
    program = 4 * small[0].program + small[0].program - OWN_BYTES
    assert node.host == program + 4 * 4 * PARAMETERS
    (node,) = node_memory(large, PLAN, where)
    assert node.host == program + sum(rank.device for rank in large)


def test_a_whole_model_of_which_a_gpu_has_a_stage_is_in_the_memory_of_its_node() -> None:
    where = cluster(device_bytes=10**6, host_bytes=10**6)
    ranks = of(PLAN, where)
    own = ranks[0].program - OWN_BYTES
    (short,) = shortfalls(ranks, PLAN, cluster(host_bytes=4 * OWN_BYTES + 4 * 40_000))
    assert (short.room, short.over) == (Room.HOST, 5 * own)
    assert ranks[1].needed(on_host=False) == ranks[1].program + 40_000
