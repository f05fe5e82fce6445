"""What measures of links come to, and in which order they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from bundlerun.launcher.doctor.findings import Finding, Level
from bundlerun.launcher.doctor.peers.links import (
    ONE_AT_A_TIME,
    Measured,
    Pair,
    check_clocks,
    check_links,
    rate_text,
    seconds_each,
    slow_links,
    turns_of,
    usual,
)
from bundlerun.launcher.doctor.peers.wire import Reach

NAMES = {0: "a", 1: "b", 2: "c"}
GIGABIT = 118e6


def network(**changes: Mapping[str, object]) -> list[Measured]:
    """Three nodes at 1 Gbit/s; changes by link, such as ab={"bytes_per_s": 1e6}."""
    good = {"port": Reach.OK, "free": Reach.OK, "rtt_s": 2e-4, "bytes_per_s": GIGABIT}
    found = []
    for source in NAMES:
        for target in NAMES:
            if source != target:
                values = {**good, **changes.get(NAMES[source] + NAMES[target], {})}
                found.append(Measured(source=source, target=target, **values))  # type: ignore[arg-type]
    return found


def bad(measures: list[Measured], heard: Mapping[Pair, bool] | None = None) -> list[Finding]:
    found = check_links(NAMES, measures, heard or {})
    return [each for each in found if each.level is not Level.OK]


SLOW = {"bytes_per_s": GIGABIT / 10}
SHUT = {"port": Reach.DROPPED, "free": Reach.DROPPED, "rtt_s": None, "bytes_per_s": None}


def test_a_good_network_has_no_findings_but_its_figures() -> None:
    found = list(check_links(NAMES, network(), {}))
    assert [each.level for each in found] == [Level.OK] * 2
    assert "6 of 6 directions do 944 Mbit/s" in found[0].text


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"ab": SLOW}, "a -> b"),
        ({"ac": SLOW, "bc": SLOW}, "c receives"),
        ({"ca": SLOW, "cb": SLOW}, "c sends"),
    ],
)
def test_a_slow_link_is_named(changes: Mapping[str, Mapping[str, object]], subject: str) -> None:
    (finding,) = bad(network(**changes))
    assert (finding.level, finding.subject) == (Level.WARNING, subject)
    assert "94 Mbit/s" in finding.text
    assert "others 944 Mbit/s" in finding.text


def test_a_node_that_is_slow_both_ways_is_named_though_most_links_are_its_own() -> None:
    found = bad(network(ac=SLOW, bc=SLOW, ca=SLOW, cb=SLOW))
    assert [each.subject for each in found] == ["c receives", "c sends"]


def test_of_two_nodes_the_slower_direction_is_named() -> None:
    pair = [m for m in network(ab=SLOW) if {m.source, m.target} == {0, 1}]
    (finding,) = bad(pair)
    assert finding.subject == "a -> b"


def test_links_that_differ_a_little_are_not_slow() -> None:
    assert slow_links(network(ab={"bytes_per_s": 0.6 * GIGABIT})) == []
    assert usual([]) == 0.0


def test_a_direction_without_a_connection_is_named() -> None:
    (finding,) = bad(network(ab=SHUT | {"port": Reach.REFUSED}))
    assert (finding.level, finding.subject) == (Level.ERROR, "a -> b")
    assert "refused" in finding.text


def test_datagrams_show_which_way_packets_are_lost() -> None:
    measures = network(ab=SHUT, ba=SHUT)
    (finding,) = bad(measures, {(0, 1): False, (1, 0): True})
    assert finding.text == "packets from a to b are dropped; those from b arrive"
    (finding,) = bad(measures, {(0, 1): True, (1, 0): False})
    assert finding.subject == "b -> a"
    both = bad(measures, {(0, 1): False, (1, 0): False})
    assert [each.subject for each in both] == ["a -> b", "b -> a"]


def test_a_firewall_that_lets_only_the_known_port_through_is_told() -> None:
    shut = {"free": Reach.DROPPED, "rtt_s": None, "bytes_per_s": None}
    (finding,) = bad(network(ab=shut))
    assert "no free one" in finding.text
    assert "ip_local_port_range" in finding.mend


def test_a_stream_that_stands_is_an_error() -> None:
    (finding,) = bad(network(ab={"bytes_per_s": 0.0}))
    assert finding.level is Level.ERROR
    assert "MTU" in finding.mend


def test_a_far_node_is_told_once_per_pair() -> None:
    far = {"rtt_s": 0.03}
    found = bad(network(ac=far, ca=far))
    assert [each.subject for each in found] == ["a - c"]


def test_many_alike_are_cut_short() -> None:
    names = {index: f"n{index}" for index in range(6)}
    measures = [
        Measured(source=a, target=b, port=Reach.REFUSED, free=Reach.REFUSED)
        for a in names
        for b in names
        if a != b
    ]
    found = list(check_links(names, measures, {}))
    assert len(found) == 13
    assert found[-1].text == "and 18 more links like these"


@pytest.mark.parametrize("num_nodes", [2, 3, ONE_AT_A_TIME, ONE_AT_A_TIME + 1, 24])
def test_each_link_has_one_turn_and_a_node_is_in_one_link_at_a_time(num_nodes: int) -> None:
    turns = list(turns_of(num_nodes))
    pairs = [pair for turn in turns for pair in turn]
    assert len(pairs) == len(set(pairs)) == num_nodes * (num_nodes - 1)
    for turn in turns:
        nodes = [index for pair in turn for index in pair]
        assert len(nodes) == len(set(nodes))
    if num_nodes > ONE_AT_A_TIME:
        assert len(turns) <= 2 * num_nodes
    assert 0.1 <= seconds_each(num_nodes) <= 0.3


@pytest.mark.parametrize(
    ("ahead_s", "level"), [({}, "ok"), ({1: 0.01}, "ok"), ({1: 0.0, 2: -7.5}, "warning")]
)
def test_clocks_are_compared(ahead_s: dict[int, float], level: str) -> None:
    finding = check_clocks(NAMES, ahead_s)
    assert finding.level == level
    assert ("c's is 7.5 s behind" in finding.text) is (level == "warning")


def test_rates_are_for_people() -> None:
    assert [rate_text(n) for n in (1.25e9, 5e8, 1.18e8, 2.5e5)] == [
        "10 Gbit/s", "4.0 Gbit/s", "944 Mbit/s", "2.0 Mbit/s",
    ]  # fmt: skip
    assert replace(network()[0], rtt_s=None).pair == (0, 1)
