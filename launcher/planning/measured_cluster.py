"""Pure: what was measured of nodes and links, as a cluster file.

Nodes that are alike are one kind, where the links between all nodes are alike, too. Else each node
is a kind of its own, and each pair that does something else than most has its `[[pair]]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bundlerun.launcher.planning.cluster import Link

_ALIKE = 0.25
"""How far rates are apart at most that count as the same; memory, too."""
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredNode:
    """One node.

    Args:
        name: of it.
        devices: that its ranks would run on.
        device_bytes: memory of one; 0: it is not known.
        host_bytes: memory of the node.
        shm_bytes: of /dev/shm.
        loaders: cores that are left for loading processes.
        cores: that ranks, sums and messages share, where devices are CPU slots; else 0.
        inside: between two processes of it.
        copy_s_per_byte: seconds of a core for a copy.
        send_s_per_byte: to send a byte to another node.
    """

    name: str
    devices: int
    device_bytes: int = 0
    host_bytes: int = 0
    shm_bytes: int = 0
    loaders: int = 0
    cores: int = 0
    inside: Link
    copy_s_per_byte: float = 0.0
    send_s_per_byte: float = 0.0


def cluster_text(nodes: Sequence[MeasuredNode], links: Mapping[tuple[int, int], Link]) -> str:
    """The file, TOML.

    Args:
        nodes: in order, one at least.
        links: of source and target, by their places in `nodes`, as far as they could be measured.
    """
    pairs = _both_ways(links)
    usual = _usual(list(pairs.values()))
    odd = {pair: link for pair, link in pairs.items() if usual and not _is_alike(link, usual)}
    kinds = [[i] for i in range(len(nodes))] if odd else _kinds(nodes)
    lines = ["# measured by bundlerun profile --links", ""]
    for members in kinds:
        lines += [*_node_lines(nodes[members[0]], len(members)), ""]
    inside = Link(
        bytes_per_s=median(node.inside.bytes_per_s for node in nodes),
        latency_s=median(node.inside.latency_s for node in nodes),
    )
    lines += ["[inside]", *_link_lines(inside)]
    if usual is not None:
        lines += ["", "[between]", *_link_lines(usual)]
    for (one, other), link in sorted(odd.items()):
        names = json.dumps([nodes[one].name, nodes[other].name])
        lines += ["", "[[pair]]", f"nodes = {names}", *_link_lines(link)]
    return "\n".join(lines) + "\n"


def _both_ways(links: Mapping[tuple[int, int], Link]) -> dict[tuple[int, int], Link]:
    """One way per pair: the slower direction, as a sum goes both."""
    found: dict[tuple[int, int], Link] = {}
    for (source, target), link in links.items():
        pair = (min(source, target), max(source, target))
        known = found.get(pair)
        if known is None or link.bytes_per_s < known.bytes_per_s:
            found[pair] = link
    return found


def _usual(links: Sequence[Link]) -> Link | None:
    if not links:
        return None
    return Link(
        bytes_per_s=median(link.bytes_per_s for link in links),
        latency_s=median(link.latency_s for link in links),
    )


def _is_alike(link: Link, usual: Link) -> bool:
    return _near(link.bytes_per_s, usual.bytes_per_s)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= _ALIKE * max(one, other)


def _kinds(nodes: Sequence[MeasuredNode]) -> list[list[int]]:
    """Neighbours that are alike, by their places: the order of nodes stays."""
    found: list[list[int]] = []
    for number, node in enumerate(nodes):
        before = nodes[found[-1][0]] if found else None
        if before is not None and _are_alike(before, node):
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _are_alike(one: MeasuredNode, other: MeasuredNode) -> bool:
    if (one.devices, one.cores) != (other.devices, other.cores):
        return False
    pairs = (
        (one.device_bytes, other.device_bytes),
        (one.host_bytes, other.host_bytes),
        (one.shm_bytes, other.shm_bytes),
    )
    return all(_near(a, b) for a, b in pairs)


def _node_lines(node: MeasuredNode, count: int) -> Iterator[str]:
    yield "[[nodes]]"
    yield f"name = {json.dumps(node.name)}"
    yield f"count = {count}"
    yield f"devices = {node.devices}"
    for key, size in (
        ("device_gb", node.device_bytes),
        ("host_gb", node.host_bytes),
        ("shm_gb", node.shm_bytes),
    ):
        if size:
            yield f"{key} = {size / _GB:.3f}"
    yield f"loaders = {node.loaders}"
    if node.cores:
        yield f"cores = {node.cores}"
    for key, seconds in (("copy_gb_s", node.copy_s_per_byte), ("send_gb_s", node.send_s_per_byte)):
        if seconds:
            yield f"{key} = {_digits(1 / seconds / _GB)}"


def _link_lines(link: Link) -> Iterator[str]:
    yield f"gbit_s = {_digits(link.bytes_per_s * 8 / _GB)}"
    yield f"latency_us = {_digits(1e6 * link.latency_s)}"


def _digits(value: float) -> str:
    """Three digits, without an exponent, and never 0 for what is more."""
    return f"{value:.2f}" if value >= 1 else f"{value:.6f}"
