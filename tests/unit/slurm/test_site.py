"""What Slurm says of a node becomes launch options."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.slurm.site import (
    Names,
    candidate_addresses,
    everywhere,
    peers_of,
    slurm_defaults,
)
from tests.unit.slurm.test_task import STEP, task

ADDRESSES = {f"n{i}": f"10.0.0.{10 + i}" for i in range(1, 6)}


def book(addresses: Mapping[str, str]) -> Callable[[str], str]:
    def resolve(name: str) -> str:
        if name[:1].isdecimal():
            return name
        if name not in addresses:
            raise ConfigError(f"{name} is unknown")
        return addresses[name]

    return resolve


def nobody(name: str) -> str:
    return ""


def defaults(words: Mapping[str, str] | None = None, **changes: str) -> dict[str, str]:
    said = dict(words or {})
    names = Names(resolve=book(ADDRESSES), known_address=nobody)
    return slurm_defaults(STEP | changes, lambda name: said.get(name, ""), names)


def test_a_step_of_several_nodes_meets_at_its_first_three() -> None:
    port = task().port
    assert defaults() == {
        "rdzv_id": "slurm-7.0-r0",
        "node_name": "n2",
        "nnodes": "1:4",
        "rdzv_endpoint": f"10.0.0.11:{port},10.0.0.12:{port},10.0.0.13:{port}",
    }


def test_a_requeued_job_has_another_id() -> None:
    assert defaults(SLURM_RESTART_COUNT="3")["rdzv_id"] == "slurm-7.0-r3"


def test_a_step_of_one_node_needs_no_endpoint() -> None:
    assert defaults(SLURM_STEP_NODELIST="n2") == {"rdzv_id": "slurm-7.0-r0", "node_name": "n2"}


def test_cpu_slots_stand_for_gpus_where_the_user_wants_the_cpu() -> None:
    assert defaults({"devices": "cpu"}, SLURM_GPUS_ON_NODE="3")["slots"] == "3"
    assert "slots" not in defaults({"devices": "cpu", "slots": "2"}, SLURM_GPUS_ON_NODE="3")


@pytest.mark.parametrize("said", [{}, {"devices": "auto"}, {"devices": "gpu"}])
def test_gpus_that_nobody_sees_are_an_error(said: dict[str, str]) -> None:
    with pytest.raises(NodeError, match=r"3 GPUs, and none can be seen.* --devices cpu"):
        defaults(said, SLURM_GPUS_ON_NODE="3")


def test_what_the_user_says_needs_no_names() -> None:
    said = {"rdzv_endpoint": "x:1"}
    found = slurm_defaults(STEP, lambda name: said.get(name, ""), Names(resolve=book({})))
    assert "rdzv_endpoint" not in found


def test_torchs_own_backend_gets_one_endpoint_and_all_nodes() -> None:
    found = defaults({"rdzv_backend": "c10d"})
    assert found["rdzv_endpoint"] == f"10.0.0.11:{task().port}"
    assert found["nnodes"] == "4"


def test_standalone_takes_no_part() -> None:
    assert "nnodes" not in defaults({"standalone": "True"})


@pytest.mark.parametrize("missing", ["SLURM_STEP_NODELIST", "SLURM_PROCID"])
def test_outside_a_step_nothing_follows(missing: str) -> None:
    environ = {name: value for name, value in STEP.items() if name != missing}
    assert slurm_defaults(environ, lambda name: "") == {}


def test_several_tasks_on_a_node_are_refused() -> None:
    with pytest.raises(ConfigError, match="--ntasks-per-node=1"):
        defaults(SLURM_LOCALID="1")


def test_slurm_is_asked_where_a_name_stands_for_this_machine() -> None:
    names = Names(
        resolve=book(ADDRESSES | {"n2": "127.0.1.1"}),
        known_address=lambda node: "10.9.9.9" if node == "n2" else "",
    )
    assert candidate_addresses(task(), names)[1] == "10.9.9.9"


def test_the_route_to_another_node_shows_which_address_it_sees() -> None:
    names = Names(
        resolve=book(ADDRESSES | {"n2": "127.0.1.1"}),
        known_address=lambda node: node,
        route_to=lambda address, port: f"route to {address}",
    )
    assert candidate_addresses(task(), names) == ("10.0.0.11", "route to 10.0.0.11", "10.0.0.13")


def test_a_node_without_an_address_is_named() -> None:
    def no_route(address: str, port: int) -> str:
        raise NodeError("no route")

    names = Names(
        resolve=book(ADDRESSES | {"n2": "127.0.1.1"}), known_address=nobody, route_to=no_route
    )
    with pytest.raises(ConfigError, match="node 'n2' has no address"):
        candidate_addresses(task(), names)
    with pytest.raises(ConfigError, match="node 'n1' has no address"):
        candidate_addresses(task(), Names(resolve=book({}), known_address=nobody))


def test_the_peers_of_a_step_are_all_its_nodes() -> None:
    found = peers_of(STEP, Names(resolve=book(ADDRESSES), known_address=nobody))
    assert found is not None
    assert (found.name, found.index) == ("n2", 1)
    port = task().port
    assert [str(each) for each in found.endpoints] == [
        f"10.0.0.{10 + i}:{port}" for i in range(1, len(task().nodes) + 1)
    ]
    assert peers_of(STEP | {"SLURM_STEP_NODELIST": "n2"}) is None
    assert peers_of({}) is None


@pytest.mark.parametrize(
    ("environ", "is_there"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NNODES": "3"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}, False),
        ({"SLURM_JOB_NUM_NODES": "3"}, False),
        (STEP | {"SLURM_JOB_NUM_NODES": "4"}, False),
        ({}, False),
    ],
)
def test_an_allocation_that_no_srun_has_entered_has_a_command_for_all_nodes(
    environ: dict[str, str], is_there: bool
) -> None:
    assert (everywhere(environ, ["x"])[:2] == ["srun", "--nodes=3"]) is is_there
