"""A cluster described in a small TOML file.

[[nodes]]                      nodes that are alike
name = "a"
count = 16
devices = 8
speed = 1.0                    of a device, over the profiled one
device_gb = 80
host_gb = 1000
shm_gb = 500
loaders = 32

[inside]                       between two devices of a node
gbit_s = 2400
latency_us = 5

[between]                      of a node to the others
gbit_s = 100
latency_us = 20

[[pair]]                       between nodes of two kinds, where it is another one
nodes = ["a", "b"]
gbit_s = 10
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.planning.cluster import MOST_DEVICES, Cluster, Host, Link, NodeKind

_GB = 1e9
_LEAST, _MOST = 1e-9, 1e15
"""Of any number: beyond these, times are no numbers that can be added up."""
_TABLES = ("nodes", "inside", "between", "pair")
_LINK_KEYS = ("gbit_s", "latency_us")
_HOST_KEYS = ("cores", "copy_gb_s", "send_gb_s", "message_us")
_NODE_KEYS = (
    "name",
    "count",
    "devices",
    "speed",
    "device_gb",
    "host_gb",
    "shm_gb",
    "loaders",
    *_HOST_KEYS,
)


def read_cluster(path: Path) -> Cluster:
    """The cluster that a file describes.

    Raises:
        ConfigError: it cannot be read, or says what is none.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(f"cannot read the cluster file {path}: {reason}") from exc
    return cluster_from(text, str(path))


def cluster_from(text: str, path: str) -> Cluster:
    """The cluster that a text describes; `path` is for messages.

    Raises:
        ConfigError: see `read_cluster`.
    """
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    found = _Table(path, "", whole)
    found.check_keys(_TABLES)
    inside = _link(found.table("inside"))
    tables = found.tables("nodes")
    kinds = tuple(_kind(table, number, inside) for number, table in enumerate(tables))
    if not kinds:
        raise ConfigError(f"{path} has no [[nodes]]; give one with devices = 8, for example")
    num_devices = sum(kind.count * kind.devices for kind in kinds)
    if num_devices > MOST_DEVICES:
        raise ConfigError(
            f"{path} describes {num_devices:,} devices, and plans are for {MOST_DEVICES:,} at "
            "most; give smaller counts"
        )
    names = [kind.name for kind in kinds]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path} has two kinds of nodes with the name {name!r}; rename one")
    return Cluster(
        kinds=kinds,
        between=_link(found.table("between")),
        pairs=_pairs(found.tables("pair"), names),
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the file.

    Args:
        path: of the file.
        name: as it stands there, such as "[inside]"; empty: the file itself.
        values: by key.
    """

    path: str
    name: str
    values: Mapping[str, object]

    def error(self, text: str) -> ConfigError:
        """What is raised for something in here."""
        where = f"{self.name} of {self.path}" if self.name else self.path
        return ConfigError(f"{where}: {text}")

    def check_keys(self, valid: Iterable[str]) -> None:
        """Raises ConfigError for a key that is none."""
        for key in self.values:
            if key not in valid:
                raise self.error(f"unknown key {key!r}; {nearest(key, valid)}")

    def table(self, key: str) -> _Table:
        """The table of that name; empty where there is none."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"{key} is {value!r}; write a table [{key}]")
        return _Table(self.path, f"[{key}]", value)

    def tables(self, key: str) -> list[_Table]:
        """All tables of that name."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.error(f"{key} is {value!r}; write tables [[{key}]]")
        return [_Table(self.path, f"[[{key}]]", each) for each in value]

    def number(self, key: str, default: float, *, may_be_0: bool = False) -> float:
        """A finite number above 0."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"{key} = {value!r} is not a number")
        if key in self.values and not (value >= 0 if may_be_0 else value > 0):
            least = "0 or more" if may_be_0 else "above 0"
            raise self.error(f"{key} = {value} must be {least}")
        if key in self.values and not value <= _MOST:
            raise self.error(f"{key} = {value} must be finite; leave it out where nothing limits")
        if 0 < value < _LEAST:
            raise self.error(f"{key} = {value} must be {_LEAST:g} at least, a step would not end")
        return float(value)

    def whole(self, key: str, default: int, *, may_be_0: bool = False) -> int:
        """A whole number above 0."""
        value = self.number(key, default, may_be_0=may_be_0)
        if value != int(value):
            raise self.error(f"{key} = {value} is not a whole number")
        return int(value)


def _link(table: _Table) -> Link:
    table.check_keys(_LINK_KEYS)
    return _rate(table)


def _rate(table: _Table) -> Link:
    gbit_s = table.number("gbit_s", math.inf)
    latency_us = table.number("latency_us", 0.0, may_be_0=True)
    return Link(bytes_per_s=gbit_s * _GB / 8, latency_s=latency_us / 1e6)


def _kind(table: _Table, number: int, inside: Link) -> NodeKind:
    table.check_keys(_NODE_KEYS)
    if "devices" not in table.values:
        raise table.error("has no devices; say how many each of its nodes has, as devices = 8")
    name = table.values.get("name", f"kind{number}")
    if not isinstance(name, str) or not name:
        raise table.error(f"name = {name!r} is not a name; write it in quotes")

    def num_bytes(key: str) -> int:
        return round(table.number(key, 0.0) * _GB)

    def seconds_per_byte(key: str) -> float:
        return 1 / (table.number(key, math.inf) * _GB)

    return NodeKind(
        name=name,
        count=table.whole("count", 1),
        devices=table.whole("devices", 1),
        speed=table.number("speed", 1.0),
        device_bytes=num_bytes("device_gb"),
        host_bytes=num_bytes("host_gb"),
        shm_bytes=num_bytes("shm_gb"),
        inside=inside,
        loaders=table.whole("loaders", 0, may_be_0=True),
        host=Host(
            cores=table.whole("cores", 0, may_be_0=True),
            copy_s_per_byte=seconds_per_byte("copy_gb_s"),
            send_s_per_byte=seconds_per_byte("send_gb_s"),
            message_s=table.number("message_us", 0.0, may_be_0=True) / 1e6,
        ),
    )


def _pairs(tables: Iterable[_Table], names: list[str]) -> dict[tuple[str, str], Link]:
    found: dict[tuple[str, str], Link] = {}
    for table in tables:
        kinds, link = _pair(table, names)
        if kinds in found or kinds[::-1] in found:
            raise table.error(f"nodes = {list(kinds)!r} stands twice; leave one out")
        found[kinds] = link
    return found


def _pair(table: _Table, names: list[str]) -> tuple[tuple[str, str], Link]:
    table.check_keys(("nodes", *_LINK_KEYS))
    nodes = table.values.get("nodes")
    if not isinstance(nodes, list) or len(nodes) != 2:
        raise table.error(f'nodes = {nodes!r} is not two names, such as nodes = ["a", "b"]')
    for name in nodes:
        if name not in names:
            raise table.error(f"no [[nodes]] has the name {name!r}; {nearest(str(name), names)}")
    one, other = nodes
    return (one, other), _rate(table)
