"""The plan: everything decided before anything starts."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from typing import Any

import pytest

from launcher.config import TrainConfig, parse_train_argv
from launcher.errors import BundleError, ConfigError, NodeError
from launcher.hardware import Cpus, Devices, Hardware
from launcher.launch_config import LaunchConfig
from launcher.network import Meeting
from launcher.options import Resolved
from launcher.picture import plan_text
from launcher.plan import LaunchPlan, choose_num_procs, plan_document, plan_elsewhere, plan_here

HARDWARE = Hardware(
    num_gpus=0,
    cpus=Cpus(numa_nodes=(((0,), (1,)), ((2,), (3,))), quota=None),
    memory_bytes=1 << 30,
)
MEETING = Meeting(address="10.0.0.1", port=29400, is_here=True, local_addr="10.0.0.1")


def resolved_train(**values: object) -> Resolved[TrainConfig]:
    config = TrainConfig(data="/data", **values)  # type: ignore[arg-type]
    return Resolved(config, {**{f.name: "default" for f in fields(config)}, "data": "option"})


def resolved_launch(**values: object) -> Resolved[LaunchConfig]:
    config = LaunchConfig(**values)  # type: ignore[arg-type]
    return Resolved(config, {f.name: "default" for f in fields(config)})


def here(train: Resolved[TrainConfig], launch: Resolved[LaunchConfig]) -> LaunchPlan:
    return plan_here(train, launch, hardware=HARDWARE, meeting=MEETING, node_name="a")


def test_a_plan_for_machines_that_are_not_there_has_all_their_bundles() -> None:
    plan = plan_elsewhere((8, 8, 4), resolved_train(), resolved_launch())
    assert plan.topology.num_bundles == 10
    assert plan.node is None


def test_the_plan_shows_exactly_what_the_workers_will_read() -> None:
    train = resolved_train(batch_size=64, shape=(1, 1), cut=("layer3",), compile=True)
    plan = here(train, resolved_launch(slots=4))
    assert parse_train_argv(plan.argv, {}) == train.value


def test_the_document_is_json_with_all_ranks_groups_links_and_sources() -> None:
    plan = here(resolved_train(), resolved_launch(nnodes="2", rdzv_endpoint="a", slots=4))
    document = json.loads(plan.to_json())
    assert len(document["ranks"]) == 8
    assert len(document["collect"]) == len(document["distribute"]) == 4
    assert [group["ranks"] for group in document["exchange"]] == [[0, 4], [1, 5]]
    assert len(document["links"]) == 3 * 4
    assert document["config"]["data"] == {"value": "/data", "source": "option"}
    assert document["node"]["environment"]["BUNDLERUN_NODE_NAME"] == "a"
    assert document == json.loads(json.dumps(plan_document(plan)))


def test_each_rank_gets_its_share_of_the_cores() -> None:
    plan = here(resolved_train(), resolved_launch(slots=2))
    assert [layout.cpus for layout in plan.here.layouts] == [(0, 1), (2, 3)]
    assert [layout.threads for layout in plan.here.layouts] == [2, 2]


def test_a_cpu_run_hides_the_gpus_from_its_workers() -> None:
    plan = here(resolved_train(), resolved_launch(slots=2))
    assert plan.here.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_the_commands_can_be_typed() -> None:
    plan = here(
        resolved_train(run_dir="my runs/it's"), resolved_launch(nnodes="2", rdzv_endpoint="a:1")
    )
    words = shlex.split(plan.commands()[0])
    assert words[:2] == ["bundlerun", "run"]
    assert "--run-dir=my runs/it's" in words
    torchrun = shlex.split(plan.torchrun_commands()[0])
    assert torchrun[0] == "torchrun"
    assert torchrun[torchrun.index("-m") + 1] == "workers.train"


def test_the_text_has_picture_table_and_sources() -> None:
    text = plan_text(here(resolved_train(), resolved_launch(slots=4)))
    for wanted in ("bundle 0   r0* s0   r1* s1", "local master", "activation r0 -> r1", "default"):
        assert wanted in text


def test_a_big_plan_is_shortened_as_text_only() -> None:
    plan = plan_elsewhere((8,) * 1000, resolved_train(), resolved_launch())
    assert len(plan_text(plan).splitlines()) < 200
    assert len(json.loads(plan.to_json())["ranks"]) == 8000


@pytest.mark.parametrize(
    ("launch", "devices", "error", "words"),
    [
        ({"bundles": 3}, Devices(kind="gpu", count=4), ConfigError, "use --bundles 2 at most"),
        ({"nproc_per_node": "6"}, Devices(kind="gpu", count=4), ConfigError, "--transport cpu"),
        ({}, Devices(kind="gpu", count=1), NodeError, "do not hold one bundle of shape 1,1"),
    ],
)
def test_devices_that_do_not_do_are_named(
    launch: dict[str, Any], devices: Devices, error: type[BundleError], words: str
) -> None:
    with pytest.raises(error, match=words):
        choose_num_procs(TrainConfig(data="d"), LaunchConfig(**launch), devices)


def test_a_node_smaller_than_a_bundle_joins_others() -> None:
    launch = LaunchConfig(nnodes="2", rdzv_endpoint="a")
    config = TrainConfig(data="d", shape=(2, 1))
    assert choose_num_procs(config, launch, Devices(kind="gpu", count=2)) == 2


def test_odd_devices_stay_idle() -> None:
    assert (
        choose_num_procs(TrainConfig(data="d"), LaunchConfig(), Devices(kind="gpu", count=5)) == 4
    )
