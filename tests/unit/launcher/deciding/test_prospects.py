"""What is foreseen of several shapes on the nodes that may be left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.deciding import prospects
from bundlerun.launcher.deciding.decide import choose, fewer_nodes
from bundlerun.launcher.deciding.decision import Question
from bundlerun.launcher.deciding.prospects import Outset, kept_prospects, prospects_of
from bundlerun.launcher.layout.prospects import Prospects
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.declared import resolve
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.model_costs import Profile
from tests.unit.launcher.planning.models import MB, nodes, profile_of

QUESTION = Question(options={}, num_nodes=4, devices="cpu", cluster="")


def outset(shape: str, cluster: Cluster, *, min_nodes: int = 1, **piece: int) -> Outset:
    profile = replace(profile_of([0.1] * 4, message_bytes=1000, **piece), cutter="graph")
    train = TrainConfig(shape=Shape.parse(shape), batch_size=64)
    return Outset(train=train, profile=profile, cluster=cluster, samples=8, min_nodes=min_nodes)


def rates(found: Prospects) -> dict[tuple[tuple[int, ...], str], float]:
    return {(row.devices, str(row.shape)): row.samples_per_s for row in found.rows}


def test_each_shape_that_the_nodes_hold_is_foreseen_for_each_number_of_them() -> None:
    found = prospects_of(outset("1,1,1|1,1|1", nodes(3, 1)))
    assert list(rates(found)) == [
        ((1, 1, 1), "1,1,1"), ((1, 1, 1), "1,1"), ((1, 1, 1), "1"),
        ((1, 1), "1,1"), ((1, 1), "1"),
        ((1,), "1"),
    ]  # fmt: skip
    by_shape = {str(row.shape): row.cut for row in found.rows}
    assert by_shape["1,1"] == (("b1",), "graph")
    assert by_shape["1"].names == ()


def test_links_decide_between_one_bundle_and_replicas() -> None:
    """Sums of all parameters between nodes take longest where links are slow."""
    family = Shape.parse("1,1|1")
    slow, fast = (nodes(2, 1, bytes_per_s=rate) for rate in (10e6, 100e9))
    by_link = [
        prospects_of(outset("1,1|1", cluster, trained_bytes=10 * MB)) for cluster in (slow, fast)
    ]
    chosen = [found.best(family.family, (1, 1)) for found in by_link]
    assert [str(one.shape) for one in chosen if one] == ["1,1", "1"]


def test_what_does_not_fit_into_memory_is_none() -> None:
    kind = NodeKind(
        name="a", count=2, devices=1, device_bytes=150 * MB, host_bytes=10**12, shm_bytes=10**12
    )
    cluster = Cluster(kinds=(kind,), between=Link(bytes_per_s=1e9))
    found = rates(prospects_of(outset("1,1|1", cluster, trained_bytes=40 * MB)))
    assert found[(1, 1), "1,1"] > 0
    assert found[(1, 1), "1"] == 0
    assert found[(1,), "1"] == 0


def test_fewer_nodes_than_the_run_wants_are_not_looked_at() -> None:
    found = prospects_of(outset("1,1|1", nodes(3, 1), min_nodes=2))
    assert {row.devices for row in found.rows} == {(1, 1, 1), (1, 1)}


def test_of_many_nodes_only_so_many_are_away_at_one_time() -> None:
    found = prospects_of(outset("1,1|1", nodes(100, 2)))
    assert {len(row.devices) for row in found.rows} == set(range(92, 101))


def test_nodes_that_are_alike_in_number_only_are_not_foreseen() -> None:
    one = nodes(1, 1).kinds[0]
    cluster = replace(nodes(1, 1), kinds=(one, replace(one, name="b", speed=0.5)))
    assert prospects_of(outset("1,1|1", cluster)) == Prospects()


def test_nodes_of_two_sizes_are_lost_in_all_ways() -> None:
    kinds = (nodes(2, 2).kinds[0], replace(nodes(1, 1).kinds[0], name="b"))
    cluster = replace(nodes(1, 1), kinds=kinds)
    found = prospects_of(outset("1,1|1", cluster))
    assert {row.devices for row in found.rows} == {(2, 2, 1), (2, 2), (2, 1), (2,), (1,)}


def test_the_first_node_foresees_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked = outset("1,1|1", nodes(2, 1))
    made = kept_prospects(tmp_path / "p", QUESTION, asked, said.append)
    assert made.rows
    assert said == ["foreseeing shapes 1,1|1 on the nodes that may be left"]

    def never(_: Outset) -> Prospects:
        raise AssertionError("it is kept")

    monkeypatch.setattr(prospects, "prospects_of", never)
    assert kept_prospects(tmp_path / "p", QUESTION, asked, said.append) == made
    # Another profile, or fewer nodes that do, is another question.
    other = replace(asked.profile, key=replace(asked.profile.key, model="other"))
    for another in (replace(asked, profile=other), replace(asked, min_nodes=2)):
        with pytest.raises(AssertionError, match="it is kept"):
            kept_prospects(tmp_path / "p", QUESTION, another, said.append)


def test_of_two_that_foresee_at_once_the_first_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = outset("1,1|1", nodes(2, 1))
    honest = prospects.prospects_of
    first = honest(asked)

    def late(one: Outset) -> Prospects:
        monkeypatch.setattr(prospects, "prospects_of", honest)
        assert kept_prospects(tmp_path, QUESTION, asked, lambda _: None) == first
        return Prospects()

    monkeypatch.setattr(prospects, "prospects_of", late)
    assert kept_prospects(tmp_path, QUESTION, asked, lambda _: None) == first


def test_a_model_that_comes_cut_is_not_foreseen() -> None:
    asked = outset("1,1|1", nodes(2, 1))
    profile: Profile = replace(asked.profile, cutter=None)
    assert prospects_of(replace(asked, profile=profile)) == Prospects()


# --- `--shape auto`, when nodes are lost


def auto(cluster: Cluster, *, min_nodes: int = 1, **options: str) -> dict[str, Any]:
    """What a decision has of fewer nodes, where sums of all parameters take longest."""
    train = resolve(
        TrainConfig,
        {"shape": "auto", "batch_size": "64", "microbatch_size": "8"} | options,
        environ={},
        toml={},
        toml_name="",
    )
    profile = replace(
        profile_of([0.1] * 6, message_bytes=1000, trained_bytes=10 * MB), cutter="graph"
    )
    document = choose(train, profile, cluster, QUESTION)
    return document | fewer_nodes(train, profile, cluster, document, min_nodes)


def test_with_shape_auto_a_run_goes_on_in_the_best_shape_for_fewer_nodes() -> None:
    found = auto(nodes(3, 1, bytes_per_s=10e6))
    assert (found["chosen"]["shape"], found["family"]) == ("1,1,1", "1,1,1|1,1|1")
    prospects = Prospects.parse(found["prospects"])
    family = Shape.parse(found["family"])
    best = [prospects.best(held, (1,) * len(held)) for held in (family.family, family.family[1:])]
    assert [str(one.shape) for one in best if one] == ["1,1,1", "1,1"]
    # On all nodes it is the plan that was chosen.
    assert best[0] is not None
    assert list(best[0].cut.names) == found["chosen"]["cut"]
    assert best[0].samples_per_s == 64 / found["plans"][0]["step_s"]


@pytest.mark.parametrize(
    ("cluster", "min_nodes", "options"),
    [
        (nodes(3, 1, bytes_per_s=10e6), 3, {}),  # none may be lost
        (nodes(3, 1, bytes_per_s=10e6), 1, {"shape": "1,1,1", "cut": "auto"}),  # typed
        (nodes(2, 1), 1, {}),  # the same shape for any number
        (nodes(1, 2, bytes_per_s=10e6), 1, {}),  # one node
    ],
    ids=["all are needed", "one shape", "replicas", "one node"],
)
def test_there_is_one_shape_where_no_other_would_be_taken(
    cluster: Cluster, min_nodes: int, options: dict[str, str]
) -> None:
    assert "family" not in auto(cluster, min_nodes=min_nodes, **options)
