"""The plan: everything decided before anything starts."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import Cpus, Devices, Hardware
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.meeting.network import Meeting
from bundlerun.launcher.options.declared import Resolved, options_of
from bundlerun.launcher.options.endpoints import parse_endpoints
from bundlerun.launcher.options.usage import check_variables
from bundlerun.launcher.plan import (
    LaunchPlan,
    choose_num_procs,
    plan_elsewhere,
    plan_here,
)
from bundlerun.launcher.planned.document import plan_document, plan_json
from bundlerun.launcher.planned.picture import plan_text
from bundlerun.launcher.run_folder.microbatch import keep_samples
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import read_train_argv

HARDWARE = Hardware(
    num_gpus=0,
    cpus=Cpus(numa_nodes=(((0,), (1,)), ((2,), (3,))), quota=None),
)
MEETING = Meeting(
    endpoints=parse_endpoints("10.0.0.1,10.0.0.2"), is_here=True, local_addr="10.0.0.1"
)


def resolved_train(**values: object) -> Resolved[TrainConfig]:
    config = TrainConfig(data="/data", **values)  # type: ignore[arg-type]
    return Resolved(config, {**{f.name: "default" for f in fields(config)}, "data": "option"})


def resolved_launch(**values: object) -> Resolved[LaunchConfig]:
    config = LaunchConfig(**values)  # type: ignore[arg-type]
    return Resolved(config, {f.name: "default" for f in options_of(LaunchConfig)})


def here(train: Resolved[TrainConfig], launch: Resolved[LaunchConfig]) -> LaunchPlan:
    return plan_here(train, launch, hardware=HARDWARE, meeting=MEETING, node_name="a")


def test_a_plan_for_machines_that_are_not_there_has_all_their_bundles() -> None:
    plan = plan_elsewhere((8, 8, 4), resolved_train(), resolved_launch())
    assert plan.topology.num_bundles == 10
    assert plan.node is None


def test_the_plan_shows_exactly_what_the_workers_will_read() -> None:
    train = resolved_train(
        batch_size=64, shape=Shape((1, 1)), cut=("layer3",), compile="max-autotune"
    )
    plan = here(train, resolved_launch(slots=4))
    assert read_train_argv(plan.argv, {}).value == train.value


def test_devices_and_bundles_without_work_are_told_with_the_plan() -> None:
    train = resolved_train(batch_size=256, microbatch_size=32)
    text = plan_text(plan_elsewhere((8,) * 4 + (5, 4), train, resolved_launch()))
    assert "! devices that no bundle uses: 1 of 41" in text
    assert "! 12 of 20 bundles have no work" in text
    assert "! 80% of the devices' time is idle by plan" in text
    full = plan_elsewhere((8,), resolved_train(batch_size=256), resolved_launch())
    assert full.warnings() == []
    assert plan_document(full)["idle"]["samples_per_microbatch"] == 8  # type: ignore[index]


def test_a_plan_for_the_cpu_refuses_what_only_gpus_do() -> None:
    with pytest.raises(ConfigError, match="--tf32 is for GPUs"):
        here(resolved_train(tf32="on"), resolved_launch(devices="cpu", slots=4))
    plan_elsewhere((4,), resolved_train(tf32="on"), resolved_launch())


def test_devices_that_the_user_leaves_idle_are_no_waste() -> None:
    train = resolved_train(batch_size=256)
    assert here(train, resolved_launch(slots=6, bundles=1)).warnings() == []
    (line,) = here(train, resolved_launch(slots=3)).warnings()
    assert "1 of 3" in line


def test_ranks_hear_of_the_bundles_that_are_to_come() -> None:
    plan = here(resolved_train(), resolved_launch(nnodes="1:4", rdzv_endpoint="a", slots=4))
    assert plan.here.environment["BUNDLERUN_PLANNED_BUNDLES"] == "8"


def test_the_document_is_json_with_all_ranks_groups_links_and_sources() -> None:
    plan = here(resolved_train(), resolved_launch(nnodes="2", rdzv_endpoint="a", slots=4))
    document = json.loads(json.dumps(plan_document(plan)))
    assert len(document["ranks"]) == 8
    assert len(document["collect"]) == len(document["distribute"]) == 4
    assert [group["ranks"] for group in document["exchange"]] == [[0, 4], [1, 5]]
    assert len(document["links"]) == 3 * 4
    assert document["config"]["data"] == {"value": "/data", "source": "option"}
    assert document["node"]["environment"]["BUNDLERUN_NODE_NAME"] == "a"
    assert document["node"]["meeting"] == {
        "address": "10.0.0.1",
        "port": 29400,
        "is_here": True,
        "local_addr": "10.0.0.1",
        "others": ["10.0.0.2:29400"],
    }
    assert document == json.loads(json.dumps(plan_document(plan)))


@pytest.mark.parametrize(
    ("shape", "nodes", "chunks"),
    [
        ("1", (2, 1), 1),
        ("1", (1,), 1),
        ("2,1", (4, 4, 1), 1),
        ("1,1,1", (2, 2, 7), 1),
        ("1,1", (4, 3), 2),
    ],
)
def test_the_text_of_the_document_is_that_of_the_library(
    shape: str, nodes: tuple[int, ...], chunks: int
) -> None:
    train = resolved_train(batch_size=32, shape=Shape.parse(shape), chunks=chunks)
    plan = plan_elsewhere(nodes, train, resolved_launch())
    document = {**plan_document(plan), "costs": ['a "b"', "c"], "more": []}
    assert plan_json(plan, costs=['a "b"', "c"], more=[]) == json.dumps(document, indent=2)


def test_the_text_has_what_this_node_starts() -> None:
    plan = here(resolved_train(), resolved_launch(nnodes="2", rdzv_endpoint="a", slots=4))
    assert plan_json(plan) == json.dumps(plan_document(plan), indent=2)


def test_the_document_has_the_schedule_of_a_bundle() -> None:
    train = resolved_train(batch_size=64, microbatch_size=4, chunks=2)
    schedule = plan_document(plan_elsewhere((4, 4), train, resolved_launch()))["schedule"]
    assert isinstance(schedule, dict)
    assert (schedule["name"], schedule["chunks"]) == ("interleaved", 2)
    assert schedule["microbatches_per_bundle"] == 4
    assert schedule["bubble"] == pytest.approx(1 / 8)
    front, rear = schedule["ranks"]
    assert front["order"][:4] == ["F0", "F1", "F0.1", "F1.1"]
    assert (rear["stage"], rear["replica"], rear["in_flight"]) == (1, 0, 3)


def test_the_text_draws_the_schedule_where_asked() -> None:
    train = resolved_train(batch_size=8, microbatch_size=2, schedule="zero-bubble")
    plan = plan_elsewhere((2,), train, resolved_launch())
    assert "0.0  F0" not in plan_text(plan)
    lines = [line.strip() for line in plan_text(plan, shows_schedule=True).splitlines()]
    assert "0.0  F0 F1    B0 -- F2 B1 -- F3 B2 -- B3 --" in lines
    assert "1.0     F0 B0 F1 B1 W0 F2 B2 W1 F3 B3 W2 W3" in lines
    assert "bubble 8.3% of the work, transfers left out" in lines
    assert "most micro-batches in flight on a rank, by stage: 2, 2" in lines


def test_each_rank_gets_its_share_of_the_cores() -> None:
    plan = here(resolved_train(), resolved_launch(slots=2))
    assert [layout.cpus for layout in plan.here.layouts] == [(0, 1), (2, 3)]
    assert [layout.cores for layout in plan.here.layouts] == [2, 2]


@pytest.mark.parametrize(
    ("option", "environ", "line", "variable"),
    [
        (0, {}, "local rank 0: 1 thread (as torchrun), CPUs 0-1", "1"),
        (0, {"OMP_NUM_THREADS": "3"}, "local rank 0: 3 threads (OMP_NUM_THREADS), CPUs 0-1", "3"),
        (2, {"OMP_NUM_THREADS": "3"}, "local rank 0: 2 threads (--threads), CPUs 0-1", "2"),
    ],
)
def test_the_plan_shows_how_many_threads_and_who_says_so(
    option: int, environ: dict[str, str], line: str, variable: str
) -> None:
    plan = plan_here(
        resolved_train(threads=option),
        resolved_launch(slots=2),
        hardware=HARDWARE,
        meeting=MEETING,
        node_name="a",
        environ=environ,
    )
    assert line in plan_text(plan)
    assert plan.here.environment["OMP_NUM_THREADS"] == variable


def test_a_plan_with_gpus_has_loading_processes_and_larger_microbatches() -> None:
    plan = here(resolved_train(), resolved_launch(slots=2))
    assert plan.here.loaders == 0
    assert "no loading processes: ranks read between their steps" in plan_text(plan)
    plan = here(resolved_train(loader_workers=1), resolved_launch(slots=2))
    assert "1 loading process of each rank that reads data" in plan_text(plan)
    with_gpus = replace(HARDWARE, num_gpus=2)
    plan = plan_here(
        resolved_train(), resolved_launch(), hardware=with_gpus, meeting=MEETING, node_name="a"
    )
    assert plan.batch.samples == 32, "as many as keep two stages at work"
    alone = plan_here(
        resolved_train(shape=Shape((1,))), resolved_launch(), hardware=with_gpus,
        meeting=MEETING, node_name="a",
    )  # fmt: skip
    assert alone.batch.samples == 128
    assert plan_elsewhere((2,), alone.train, resolved_launch()).batch.samples == 32
    assert plan_elsewhere((2,), alone.train, resolved_launch(devices="gpu")).batch.samples == 128
    # Of four cores two train, and one copies to pinned memory.
    assert plan.here.loaders == 1
    assert plan_document(plan)["node"]["loaders"] == 1  # type: ignore[index]


def test_a_cpu_run_hides_the_gpus_from_its_workers() -> None:
    plan = here(resolved_train(), resolved_launch(slots=2))
    assert plan.here.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert plan.here.environment["BUNDLERUN_CPU_ONLY"] == "1"


def test_the_commands_can_be_typed() -> None:
    plan = here(
        resolved_train(run_dir="my runs/it's"), resolved_launch(nnodes="2", rdzv_endpoint="a:1")
    )
    words = shlex.split(plan.commands()[0])
    assert words[:2] == ["bundlerun", "run"]
    assert "--run-dir=my runs/it's" in words
    torchrun = shlex.split(plan.torchrun_commands()[0])
    assert torchrun[0] == "torchrun"
    assert torchrun[torchrun.index("-m") + 1] == "bundlerun.workers.train"


def test_the_text_has_picture_table_and_sources() -> None:
    text = plan_text(here(resolved_train(), resolved_launch(slots=4)))
    for wanted in ("bundle 0   r0* s0   r1* s1", "local master", "activation r0 -> r1", "default"):
        assert wanted in text


def test_a_big_plan_is_shortened_as_text_only() -> None:
    plan = plan_elsewhere((8,) * 1000, resolved_train(), resolved_launch())
    assert len(plan_text(plan).splitlines()) < 300  # of which each option has one
    assert len(json.loads(json.dumps(plan_document(plan)))["ranks"]) == 8000


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
    config = TrainConfig(data="d", shape=Shape((2, 1)))
    assert choose_num_procs(config, launch, Devices(kind="gpu", count=2)) == 2


def test_odd_devices_stay_idle() -> None:
    assert (
        choose_num_procs(TrainConfig(data="d"), LaunchConfig(), Devices(kind="gpu", count=5)) == 4
    )


def test_the_workers_get_the_environment_that_restarts_need() -> None:
    environment = here(resolved_train(), resolved_launch()).here.environment
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert environment["BUNDLERUN_LOCAL_ADDR"] == "10.0.0.1"


def test_the_workers_know_every_variable_that_is_set_for_them() -> None:
    environment = here(resolved_train(), resolved_launch(slots=2)).here.environment
    check_variables(environment, [TrainConfig, LaunchConfig])


def test_gpus_stay_visible_to_their_workers() -> None:
    plan = plan_here(
        resolved_train(),
        resolved_launch(),
        hardware=replace(HARDWARE, num_gpus=2),
        meeting=MEETING,
        node_name="a",
    )
    assert plan.here.devices == Devices(kind="gpu", count=2)
    assert "CUDA_VISIBLE_DEVICES" not in plan.here.environment
    assert "BUNDLERUN_CPU_ONLY" not in plan.here.environment
    assert plan.here.environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_nccl_takes_the_network_of_the_address_that_is_given() -> None:
    known = {"NCCL_SOCKET_IFNAME": "eth7"}
    for num_gpus, address, environ, wanted in (
        (2, "127.0.0.1", {}, "=lo"),
        (2, "", {}, None),
        (2, "192.0.2.1", {}, None),  # no interface of this machine
        (2, "127.0.0.1", known, None),
        (0, "127.0.0.1", {}, None),
    ):
        plan = plan_here(
            resolved_train(),
            resolved_launch(local_addr=address),
            hardware=replace(HARDWARE, num_gpus=num_gpus),
            meeting=MEETING,
            node_name="a",
            environ=environ,
        )
        assert plan.here.environment.get("NCCL_SOCKET_IFNAME") == wanted


def test_logs_of_each_node_lie_in_a_folder_of_their_own() -> None:
    assert here(resolved_train(run_dir="r"), resolved_launch()).here.log_dir == "r/logs/a"
    assert here(resolved_train(), resolved_launch(log_dir="there")).here.log_dir == "there"


@pytest.mark.parametrize("transport", ["cpu", "ipc"])
def test_several_ranks_share_a_gpu_where_they_talk_through_memory(transport: str) -> None:
    config = TrainConfig(data="d", transport=transport)
    launch = LaunchConfig(nproc_per_node="2")
    assert choose_num_procs(config, launch, Devices(kind="gpu", count=1)) == 2


def test_a_torchrun_command_names_nodes_endpoint_and_restarts() -> None:
    launch = resolved_launch(nnodes="2", rdzv_endpoint="a:1", slots=4, max_restarts=3)
    words = shlex.split(here(resolved_train(), launch).torchrun_commands()[0])
    wanted = {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=a:1", "--max-restarts=3"}
    assert wanted <= set(words)


def test_nodes_of_two_sizes_get_a_command_each() -> None:
    plan = plan_elsewhere((9, 9, 4), resolved_train(), resolved_launch())
    assert plan.topology.devices_per_node == (8, 8, 4)
    large, small = map(shlex.split, plan.commands())
    assert "--nproc-per-node=8" in large
    assert "--nproc-per-node=4" in small


def test_who_stands_in_the_folder_of_another_run_does_not_take_up_its_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_samples(RunPaths(tmp_path), 256, 2)
    monkeypatch.chdir(tmp_path)
    assert here(resolved_train(), resolved_launch(slots=2)).batch.samples == 32
    assert here(resolved_train(run_dir="."), resolved_launch(slots=2)).batch.samples == 2
