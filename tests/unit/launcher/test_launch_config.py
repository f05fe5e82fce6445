"""The launch options check themselves."""

from __future__ import annotations

from typing import Any

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig, node_range
from bundlerun.launcher.options.endpoints import Endpoint


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nnodes": "0"}, "--nnodes"),
        ({"nnodes": "3:2", "rdzv_endpoint": "a"}, "--nnodes"),
        ({"nnodes": "two"}, "--nnodes"),
        ({"nnodes": "2"}, "needs --rdzv-endpoint HOST:PORT"),
        ({"nnodes": "2", "standalone": True}, "--standalone is for one node"),
        ({"nproc_per_node": "0"}, "--nproc-per-node"),
        ({"nproc_per_node": "gpu-ish"}, "--nproc-per-node"),
        ({"bundles": 1, "nproc_per_node": "2"}, "give one of them"),
        ({"bundles": -1}, "--bundles -1 must be 0 or more"),
        ({"max_restarts": -2}, "--max-restarts -2 must be -1 or more"),
        ({"monitor_interval": 0.0}, "--monitor-interval"),
        ({"monitor_interval": float("nan")}, "--monitor-interval"),
        ({"rdzv_endpoint": "a:port"}, "--rdzv-endpoint"),
        ({"rdzv_endpoint": "a:70000"}, "--rdzv-endpoint"),
        ({"rdzv_conf": "timeout"}, "--rdzv-conf"),
        ({"tee": "0:3,1"}, "--tee"),
        ({"node_name": "a/b"}, "--node-name"),
        ({"redirects": "7"}, "--redirects"),
        ({"standby": True, "rdzv_backend": "c10d"}, "--standby needs --rdzv-backend bundle"),
        (
            {"nnodes": "2", "rdzv_endpoint": "a", "rdzv_backend": "static", "node_rank": 2},
            "--node-rank 2 of 2 nodes",
        ),
        (
            {"nnodes": "1:2", "rdzv_endpoint": "a", "rdzv_backend": "static"},
            "takes a fixed number of nodes",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LaunchConfig(**values)


def test_node_ranges() -> None:
    assert node_range("2:4", "--nodes") == node_range("2-4", "--nodes", separators=":-") == (2, 4)
    assert node_range("3", "--nodes") == (3, 3)
    for text in ("0", "4:2", "a", "1:2:3", "2-4"):
        with pytest.raises(ConfigError, match=f"--nodes '{text}' is neither"):
            node_range(text, "--nodes")


def test_min_and_max_nodes_are_read_from_one_text() -> None:
    launch = LaunchConfig(nnodes="1:4", rdzv_endpoint="node-a")
    assert (launch.min_nodes, launch.max_nodes) == (1, 4)
    assert launch.endpoints == (Endpoint(host="node-a", port=29400),)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("[fd00::1]:7", "fd00::1", 7), ("10.0.0.1", "10.0.0.1", 29400), ("a-b.c:80", "a-b.c", 80)],
)
def test_an_endpoint_is_a_name_or_an_address(text: str, host: str, port: int) -> None:
    assert LaunchConfig(rdzv_endpoint=text).endpoints == (Endpoint(host=host, port=port),)


def test_one_node_needs_no_endpoint() -> None:
    assert LaunchConfig().is_alone
    assert LaunchConfig(standalone=True).is_alone
    assert not LaunchConfig(rdzv_endpoint="10.0.0.1").is_alone


def test_rendezvous_settings_are_pairs() -> None:
    launch = LaunchConfig(rdzv_conf="join_timeout=600, last_call_timeout=1")
    assert launch.rdzv_settings == {"join_timeout": "600", "last_call_timeout": "1"}


def test_several_endpoints_take_over_from_each_other() -> None:
    launch = LaunchConfig(nnodes="3", rdzv_endpoint="a:1,b,[::1]:3")
    assert launch.endpoints == (
        Endpoint(host="a", port=1),
        Endpoint(host="b", port=29400),
        Endpoint(host="::1", port=3),
    )


@pytest.mark.parametrize(
    ("endpoint", "backend", "message"),
    [
        ("a:1,b:1", "c10d", "names 2 endpoints, --rdzv-backend c10d takes one"),
        ("a:1,a:1", "bundle", "names an endpoint twice"),
        ("a:1,", "bundle", "is not HOST:PORT"),
    ],
)
def test_a_list_of_endpoints_that_does_not_work_is_refused(
    endpoint: str, backend: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        LaunchConfig(nnodes="2", rdzv_endpoint=endpoint, rdzv_backend=backend)
    assert message in str(caught.value)
