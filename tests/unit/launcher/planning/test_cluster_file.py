"""Clusters as files describe them, and what is said of files that describe none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.planning.cluster import Link
from bundlerun.launcher.planning.cluster_file import cluster_from, read_cluster

TWO_KINDS = """
[[nodes]]
name = "fast"
count = 2
devices = 8
device_gb = 80
host_gb = 1000
shm_gb = 500
loaders = 16

[[nodes]]
name = "slow"
devices = 4
speed = 0.5
cores = 4
copy_gb_s = 5
send_gb_s = 2
message_us = 10

[inside]
gbit_s = 800
latency_us = 5

[between]
gbit_s = 8
latency_us = 50

[[pair]]
nodes = ["slow", "fast"]
gbit_s = 1
"""


def test_a_file_says_nodes_devices_and_links(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(TWO_KINDS)
    cluster = read_cluster(path)
    fast, slow = cluster.kinds
    assert cluster.devices_per_node == (8, 8, 4)
    assert (fast.device_bytes, fast.shm_bytes, fast.loaders) == (80 * 10**9, 500 * 10**9, 16)
    assert (slow.speed, slow.host.cores) == (0.5, 4)
    assert slow.host.copy_s_per_byte == pytest.approx(0.2e-9)
    assert slow.host.send_s_per_byte == pytest.approx(0.5e-9)
    assert slow.host.message_s == pytest.approx(10e-6)
    assert fast.host.cores == 0
    assert fast.host.copy_s_per_byte == 0
    assert fast.inside == Link(bytes_per_s=1e11, latency_s=5e-6)
    assert cluster.link(fast, fast).bytes_per_s == 1e9
    assert cluster.link(fast, slow) == cluster.link(slow, fast) == Link(bytes_per_s=1.25e8)


def test_what_is_left_out_limits_nothing() -> None:
    cluster = cluster_from("[[nodes]]\ndevices = 1\n", "c.toml")
    assert cluster.num_nodes == 1
    assert math.isinf(cluster.between.bytes_per_s)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[nodes]\n", "c.toml is not TOML"),
        ("", "c.toml has no [[nodes]]"),
        ("[[node]]\ndevices = 1\n", "unknown key 'node'; nearest: nodes"),
        ("[[nodes]]\ndevice = 1\n", "unknown key 'device'; nearest: devices"),
        ("[[nodes]]\nname = 'a'\n", "[[nodes]] of c.toml: has no devices"),
        ("[[nodes]]\ndevices = 1.5\n", "devices = 1.5 is not a whole number"),
        ("[[nodes]]\ndevices = 'two'\n", "devices = 'two' is not a number"),
        ("[[nodes]]\ndevices = 1\nspeed = 0\n", "speed = 0 must be above 0"),
        ("[[nodes]]\ndevices = 1\nspeed = nan\n", "speed = nan must be above 0"),
        ("[[nodes]]\ndevices = 1\n[between]\ngbit_s = -1\n", "gbit_s = -1 must be above 0"),
        ("[[nodes]]\ndevices = 1\n[inside]\ngbit_s = inf\n", "must be finite; leave it out"),
        ("[[nodes]]\ndevices = 1\n[between]\nlatency_us = -1\n", "latency_us = -1 must be 0 or"),
        ("[[nodes]]\ndevices = 1\n[between]\ngbits = 1\n", "unknown key 'gbits'; nearest: gbit_s"),
        ("between = 3\n[[nodes]]\ndevices = 1\n", "between is 3; write a table [between]"),
        ("nodes = 3\n", "nodes is 3; write tables [[nodes]]"),
        ("[[nodes]]\ndevices=1\n[[pair]]\nnodes=['kind0']\n", "is not two names"),
        ("[[nodes]]\ndevices=1\nname='ab'\n[[pair]]\nnodes=['ab','ac']\n", "nearest: ab"),
        (
            "[[nodes]]\ndevices=1\nname='a'\n[[nodes]]\ndevices=1\nname='b'\n"
            "[[pair]]\nnodes=['a','b']\n[[pair]]\nnodes=['b','a']\n",
            "[[pair]] of c.toml: nodes = ['b', 'a'] stands twice",
        ),
        (f"[[nodes]]\ndevices=1\n[between]\ngbit_s={'9' * 400}\n", "must be finite"),
        ("[[nodes]]\ndevices=1\ncopy_gb_s=1e-320\n", "must be 1e-09 at least, a step would"),
        ("[[nodes]]\ndevices=8\ncount=10000000000\n", "80,000,000,000 devices, and plans are"),
        ("[[nodes]]\ndevices=1\n[[pair]]\nnodes=[['a'],2]\n", "no [[nodes]] has the name ['a']"),
        (2 * "[[nodes]]\ndevices=1\nname='a'\n", "two kinds of nodes with the name 'a'"),
    ],
)
def test_what_is_no_cluster_is_said_in_one_line(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster_from(text, "c.toml")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_cluster(tmp_path / "none.toml")
