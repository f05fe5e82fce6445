import textwrap
from dataclasses import fields

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.plan import plan_elsewhere
from bundlerun.launcher.planned.picture import (
    group_lines,
    link_lines,
    picture,
    plan_text,
    rank_table,
)

LEGEND = "(r rank, s stage, .n its replica in the bundle, * local master)"


def drawn(shape: tuple[int, ...], nodes: tuple[int, ...]) -> str:
    return "\n".join(line.rstrip() for line in picture(Topology(Shape(shape), nodes)))


def test_nodes_that_look_alike_are_drawn_once() -> None:
    assert drawn((1, 1), (4, 4, 2)) == textwrap.dedent(f"""\
        nodes 0 to 1, each as node 0: 4 ranks
          bundle 0   r0* s0   r1* s1
          bundle 1   r2  s0   r3  s1
        node 2: 2 ranks
          bundle 4   r8* s0   r9* s1
        {LEGEND}""")


def test_replicas_parts_and_spare_ranks_are_marked() -> None:
    assert drawn((2, 1), (4, 2, 1)) == textwrap.dedent(f"""\
        node 0: 4 ranks
          bundle 0   r0* s0.0   r1  s0.1   r2* s1
          spare      r3
        node 1: 2 ranks
          bundle 1   r4* s0.0   r5  s0.1   (part)
        node 2: 1 rank
          bundle 1   r6* s1   (part)
        {LEGEND}""")


def test_a_large_job_is_cut_short_everywhere() -> None:
    topology = Topology(Shape((1, 1)), tuple(4 if node % 2 else 8 for node in range(1000)))
    for lines in (picture(topology), rank_table(topology), group_lines(topology)):
        shown = list(lines)
        assert len(shown) < 40
        assert any("more" in line for line in shown)


def test_a_bundle_of_one_rank_has_no_links() -> None:
    assert list(link_lines(Topology(Shape((1,)), (2,)))) == ["none: a bundle is one rank"]


def test_the_links_of_one_bundle_stand_for_all() -> None:
    assert list(link_lines(Topology(Shape((1, 1)), (4,)))) == [
        "3 links per bundle; those of bundle 0:",
        "  activation r0 -> r1",
        "  gradient   r1 -> r0",
        "  target     r0 -> r1",
    ]


def test_the_whole_text_says_each_value_and_its_source() -> None:
    train = TrainConfig(data="photos", lr=0.5)
    sources = {f.name: "default" for f in fields(TrainConfig)} | {"lr": "conf.toml"}
    launch = LaunchConfig()
    launch_sources = {f.name: "default" for f in fields(LaunchConfig)}
    plan = plan_elsewhere((4,), Resolved(train, sources), Resolved(launch, launch_sources))
    lines = [line.split() for line in plan_text(plan).splitlines()]
    assert ["lr", "0.5", "conf.toml"] in lines
    assert ["DATA", "photos", "default"] in lines
    assert ["max-restarts", "-1", "default"] in lines
