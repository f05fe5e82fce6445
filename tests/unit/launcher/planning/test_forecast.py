"""Steps that can be worked out by hand, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlerun.launcher.choices import EXCHANGE_SHARE, ExchangeDtype, ScheduleName, SchemeName
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.timeline import Costs, simulate
from bundlerun.launcher.planning.candidate import Candidate, Forecast, Request, Term
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.forecast import foresee
from bundlerun.launcher.planning.model_costs import SharedParameters, UpdateCosts
from tests.unit.launcher.planning.models import GBIT, MB, nodes, profile_of

SCHEDULES: tuple[ScheduleName, ...] = ("1f1b", "eager-1f1b", "gpipe", "zero-bubble")


def plan(
    *widths: int,
    cuts: tuple[int, ...] = (),
    schedule: ScheduleName = "1f1b",
    sync: SchemeName = "local-master",
    chunks: int = 1,
) -> Candidate:
    return Candidate(
        shape=Shape(widths), cuts=cuts, schedule=schedule, sync=sync, samples=8, chunks=chunks
    )


def batch(microbatches: int, **more: object) -> Request:
    return replace(Request(batch_size=8 * microbatches), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("widths", [(1, 1), (2, 1), (1, 1, 1, 1)])
def test_without_links_and_sums_it_is_the_timeline(
    schedule: ScheduleName, widths: tuple[int, ...]
) -> None:
    forwards = [0.02 * (1 + i) for i in range(len(widths))]
    found = foresee(
        profile_of(forwards),
        plan(*widths, cuts=tuple(range(len(widths) - 1)), schedule=schedule),
        nodes(1, sum(widths)),
        batch(8),
    )
    slow = frozenset(range(len(widths) - 1)) if schedule == "eager-1f1b" else frozenset[int]()
    pipeline = Pipeline(shape=Shape(widths), schedule=schedule, slow_links=slow)
    costs = Costs(forward=forwards, backward=[2 * f for f in forwards], weight=forwards)
    timeline = simulate(pipeline.bundle(8), costs)
    assert timeline is not None
    # A step may begin before the one before has ended on all ranks.
    assert found.step_s <= timeline.duration + 1e-9
    assert found.step_s >= timeline.duration / (1 + timeline.bubble) - 1e-9
    if schedule in ("1f1b", "gpipe") and widths == (1, 1):
        assert found.step_s == pytest.approx(timeline.duration)
    busiest = max(8 / w * 3 * f for w, f in zip(widths, forwards, strict=True))
    assert found.terms[Term.COMPUTE] == pytest.approx(busiest)


def test_sums_of_one_stage_are_as_long_as_the_wire_allows() -> None:
    # 32 MB over 1 Gbit/s are 256 ms, and begin when the first of 32 pieces is done.
    found = foresee(
        profile_of([0.001] * 32, trained_bytes=MB),
        plan(1),
        nodes(2, 4, bytes_per_s=GBIT),
        batch(8, bucket_bytes=MB),
    )
    assert found.egress_bytes == pytest.approx(32 * MB, rel=0.01)
    assert found.exchange_s == pytest.approx(0.256, rel=0.01)
    assert found.step_s == pytest.approx(0.032 + 0.002 + 0.256, rel=0.02)
    assert found.terms[Term.COMPUTE] == pytest.approx(0.096)
    assert found.limit is Term.EXCHANGE


@pytest.mark.parametrize(("form", "share"), list(EXCHANGE_SHARE.items())[1:])
def test_more_nodes_send_around_a_ring_and_rounding_shortens_it(
    form: ExchangeDtype, share: float
) -> None:
    profile = profile_of([0.001] * 4, trained_bytes=8 * MB)
    cluster = nodes(8, 1, bytes_per_s=GBIT)
    whole = foresee(profile, plan(1), cluster, batch(8))
    rounded = foresee(profile, plan(1), cluster, batch(8, exchange=ExchangeForm(form)))
    assert whole.egress_bytes == pytest.approx(2 * 7 / 8 * 32 * MB, rel=0.01)
    assert rounded.egress_bytes == pytest.approx(share * whole.egress_bytes)
    assert rounded.step_s < (share + 0.1) * whole.step_s


def test_latencies_of_a_ring_grow_with_its_nodes() -> None:
    profile = profile_of([0.001] * 4, trained_bytes=MB)

    def step_s(count: int) -> float:
        return foresee(profile, plan(1), nodes(count, 1, latency_s=1e-4), batch(count)).step_s

    assert step_s(1000) - step_s(100) > 900 * 1e-4


def test_messages_hide_behind_passes_where_the_schedule_is_eager() -> None:
    # As the `pipeline` benchmark: passes of 20 and 40 ms, messages of 20 ms.
    profile = profile_of([0.02, 0.02], message_bytes=round(0.02 * GBIT))
    cluster = nodes(2, 1, bytes_per_s=GBIT)
    alone = foresee(profile_of([0.02, 0.02]), plan(1, 1, cuts=(0,)), cluster, batch(8)).step_s
    shown, hidden = (
        foresee(profile, plan(1, 1, cuts=(0,), schedule=schedule), cluster, batch(8))
        for schedule in ("1f1b", "eager-1f1b")
    )
    assert hidden.step_s == pytest.approx(alone + 0.04, abs=0.001)
    assert shown.step_s > alone + 0.15
    assert shown.limit is Term.LINKS
    assert shown.egress_bytes == round(0.02 * GBIT) * 8


def test_messages_and_sums_share_what_a_node_sends() -> None:
    # The sum of the rear stage is under way while it sends its last gradient.
    profile = profile_of([0.002] * 8, trained_bytes=4 * MB, message_bytes=MB)
    cluster = nodes(4, 1, bytes_per_s=GBIT)
    found = foresee(profile, plan(1, 1, cuts=(3,)), cluster, batch(8))
    alone = foresee(profile, plan(1, 1, cuts=(3,)), nodes(2, 1, bytes_per_s=GBIT), batch(4))
    assert alone.terms[Term.EXCHANGE] == 0
    assert found.terms[Term.EXCHANGE] > 16 * MB / GBIT * 0.9


@pytest.mark.parametrize("sync", ["local-master", "sharded", "flat"])
def test_sums_inside_one_node_take_its_processor(sync: SchemeName) -> None:
    host = Host(cores=4, copy_s_per_byte=1e-9)
    profile = profile_of([0.001] * 4, trained_bytes=8 * MB)
    cluster = nodes(1, 4, host=host)
    found = foresee(profile, plan(1, sync=sync), cluster, batch(4))
    free = foresee(profile, plan(1, sync=sync), nodes(1, 4, host=Host(cores=4)), batch(4))
    assert found.egress_bytes == 0
    assert found.step_s > free.step_s + 0.016
    assert found.terms[Term.LINKS] == 0
    assert found.terms[Term.EXCHANGE] == pytest.approx(found.step_s - free.step_s)
    if sync == "sharded":
        master = foresee(profile, plan(1), cluster, batch(4))
        assert found.step_s < master.step_s


def test_sums_of_hosts_that_are_one_machine_share_its_cores() -> None:
    host = Host(cores=2, copy_s_per_byte=1e-9, send_s_per_byte=1e-9, passes_apart=True)
    profile = profile_of([0.001] * 4, trained_bytes=8 * MB)
    apart = nodes(4, 1, host=host)
    one = replace(apart, is_one_machine=True)
    alone, shared = (foresee(profile, plan(1), each, batch(4)) for each in (apart, one))
    # A ring of four: each sends, receives and adds 48 MB, two buckets at a time: on two cores of
    # its own, or on the same two as the others.
    sums_s = 48 * MB * 3e-9
    assert alone.terms[Term.EXCHANGE] == pytest.approx(sums_s / 2, rel=0.1)
    assert shared.terms[Term.EXCHANGE] == pytest.approx(4 * sums_s / 2, rel=0.1)
    assert shared.egress_bytes == alone.egress_bytes
    enough = replace(one, kinds=(replace(one.kinds[0], host=replace(host, cores=8)),))
    assert foresee(profile, plan(1), enough, batch(4)).step_s == pytest.approx(alone.step_s)


def test_passes_that_are_apart_take_no_core_of_sums() -> None:
    host = Host(cores=1, copy_s_per_byte=1e-9)
    profile = profile_of([0.001] * 4, trained_bytes=8 * MB)
    on_cores, apart = (
        foresee(profile, plan(1), nodes(1, 4, host=each), batch(4))
        for each in (host, replace(host, passes_apart=True))
    )
    # Four ranks on one core, or each on a device of its own.
    assert on_cores.terms[Term.COMPUTE] == pytest.approx(4 * 0.012, rel=0.01)
    assert apart.terms[Term.COMPUTE] == pytest.approx(0.012)
    assert apart.terms[Term.EXCHANGE] > 0.03


@pytest.mark.parametrize(
    ("sync", "times"),
    [
        ("flat", 2 * 7 / 8),  # around a ring of eight
        ("sharded", 1 + 25 / 32),  # to their leaders in 25 MB and 7, of which the 25 go back last
        ("local-master", 8 + 1 / 4),  # one rank after the other; all but 8 MB are back meanwhile
    ],
)
def test_sums_of_gpus_inside_one_node_are_as_long_as_its_links_allow(
    sync: SchemeName, times: float
) -> None:
    profile = profile_of([0.001] * 4, trained_bytes=8 * MB)
    alike = nodes(1, 8)
    (kind,) = alike.kinds
    slow = replace(alike, kinds=(replace(kind, inside=Link(bytes_per_s=GBIT)),))
    found = foresee(profile, plan(1, sync=sync), slow, batch(8))
    free = foresee(profile, plan(1, sync=sync), alike, batch(8))
    assert found.step_s - free.step_s == pytest.approx(times * 32 * MB / GBIT, rel=0.05)


def test_ranks_share_cores() -> None:
    profile = profile_of([0.01] * 4)
    half = foresee(profile, plan(1), nodes(1, 4, host=Host(cores=2)), batch(8))
    assert half.step_s == pytest.approx(2 * 2 * 0.12)
    # A rank that waits for the other one leaves the core to it.
    pipe = foresee(profile, plan(1, 1, cuts=(1,)), nodes(1, 2, host=Host(cores=1)), batch(8))
    assert pipe.step_s == pytest.approx(8 * 0.12)


def test_a_slow_node_gets_fewer_micro_batches() -> None:
    fast = NodeKind(name="fast", count=2, devices=1)
    slow = NodeKind(name="slow", count=1, devices=1, speed=0.5)
    cluster = Cluster(kinds=(fast, slow), between=Link(bytes_per_s=float("inf")))
    found = foresee(profile_of([0.01]), plan(1), cluster, batch(10))
    # 4 + 4 + 2.
    assert found.step_s == pytest.approx(4 * 0.03)
    assert found.bubble == pytest.approx(0.0, abs=1e-9)


def test_a_slow_pair_bounds_the_exchange() -> None:
    kinds = tuple(NodeKind(name=name, count=1, devices=1) for name in "ab")
    slow = {("b", "a"): Link(bytes_per_s=GBIT / 10)}
    profile = profile_of([0.001] * 4, trained_bytes=4 * MB)
    usual, bounded = (
        foresee(
            profile,
            plan(1),
            Cluster(kinds=kinds, between=Link(bytes_per_s=GBIT), pairs=pairs),
            batch(2),
        )
        for pairs in ({}, slow)
    )
    assert bounded.exchange_s == pytest.approx(10 * usual.exchange_s, rel=0.05)


def test_what_stages_share_is_summed_once_by_all_of_them() -> None:
    shared = (SharedParameters(num_bytes=20 * MB, pieces=(0, 1)),)
    profile = profile_of([0.01, 0.01], shared=shared)
    cluster = nodes(2, 2, bytes_per_s=GBIT)
    found = foresee(profile, plan(1, 1, cuts=(0,)), cluster, batch(8))
    assert found.egress_bytes == pytest.approx(20 * MB)


def test_loaders_that_are_late_are_other_time() -> None:
    profile = profile_of([0.01], update=UpdateCosts(load_s=0.1, step_s=0.005))
    kind = NodeKind(name="a", count=1, devices=1, loaders=4)
    cluster = Cluster(kinds=(kind,), between=Link(bytes_per_s=GBIT))
    found = foresee(profile, plan(1), cluster, batch(4))
    assert found.step_s == pytest.approx(32 * 0.1 / 4)
    assert found.limit is Term.OTHER


def test_devices_for_no_bundle_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 devices do not hold one bundle of shape 1,1"):
        foresee(profile_of([1, 1]), plan(1, 1, cuts=(0,)), nodes(1, 1), batch(1))


def test_many_micro_batches_go_on_as_they_have_begun() -> None:
    profile = profile_of([0.01, 0.012, 0.011, 0.01], message_bytes=MB)
    cluster = nodes(4, 1, bytes_per_s=10 * GBIT)
    found = foresee(profile, plan(1, 1, 1, 1, cuts=(0, 1, 2)), cluster, batch(400))
    assert found.step_s == pytest.approx(400 * 3 * 0.012, rel=0.03)
    assert found.egress_bytes == 400 * 2 * MB
    assert sum(found.terms.values()) == pytest.approx(found.step_s)


def test_100_000_ranks_are_looked_at_as_few() -> None:
    found = foresee(
        profile_of([0.01] * 4, trained_bytes=MB),
        plan(2, 2, cuts=(1,)),
        nodes(12_500, 8, bytes_per_s=100 * GBIT),
        batch(8 * 25_000),
    )
    assert found.terms[Term.COMPUTE] == pytest.approx(4 * 0.06)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    schedule=st.sampled_from(SCHEDULES),
    sync=st.sampled_from(["local-master", "sharded", "flat"]),
    devices=st.integers(1, 5),
    count=st.integers(1, 4),
    cores=st.sampled_from([0, 1, 2]),
    microbatches=st.integers(1, 9),
)
def test_any_plan_adds_up(
    widths: list[int],
    schedule: ScheduleName,
    sync: SchemeName,
    devices: int,
    count: int,
    cores: int,
    microbatches: int,
) -> None:
    host = Host(cores=cores, copy_s_per_byte=1e-10, send_s_per_byte=1e-10, message_s=1e-5)
    cluster = nodes(count, devices, bytes_per_s=GBIT, latency_s=1e-4, host=host)
    candidate = plan(*widths, cuts=tuple(range(len(widths) - 1)), schedule=schedule, sync=sync)
    forwards = [0.01 + 0.002 * i for i in range(len(widths))]
    update = UpdateCosts(update_s_per_byte=1e-10, step_s=1e-3)
    profile = profile_of(forwards, trained_bytes=MB, message_bytes=10_000, update=update)
    try:
        found: Forecast = foresee(profile, candidate, cluster, batch(microbatches))
    except ConfigError:
        assert count * devices < sum(widths) or devices < sum(widths)
        return
    assert sum(found.terms.values()) == pytest.approx(found.step_s)
    assert all(seconds >= 0 for seconds in found.terms.values())
    assert 0 <= found.bubble <= 1
    assert found.step_s >= 3 * min(forwards)
