"""Pure: what several nodes found, as a text and as a JSON document."""

from __future__ import annotations

from typing import Any

from bundlerun.launcher.console import noun_for
from bundlerun.launcher.doctor.findings import count_text, lines_of
from bundlerun.launcher.doctor.peers.lead import Together


def text(together: Together, seconds: float) -> str:
    """For people: what all nodes have alike, then node by node, then what is between them."""
    found = f"{count_text(together.findings)} ({seconds:.1f} s)"
    if len(together.nodes) == 1 and not together.between:
        return "\n".join([*lines_of(together.findings), found])
    alike = set.intersection(*(set(node.findings) for node in together.nodes))
    # In the order of the first node, whose findings they are, too.
    common = [each for each in together.nodes[0].findings if each in alike]
    lines = ["on all nodes", *lines_of(common), ""] if common else []
    for node in together.nodes:
        own = [each for each in node.findings if each not in alike]
        lines += [f"{node.name} at {node.endpoint}", *lines_of(own), ""]
    if together.between:
        lines += ["between the nodes", *lines_of(together.between), ""]
    num = len(together.nodes)
    return "\n".join([*lines, f"{num} {noun_for(num, 'node')}: {found}"])


def document(together: Together, seconds: float) -> dict[str, Any]:
    """As plain values: findings of each node, those between them, and every link."""
    return {
        "seconds": round(seconds, 3),
        "nodes": [
            {
                "name": node.name,
                "endpoint": node.endpoint,
                "findings": [each.to_plain() for each in node.findings],
            }
            for node in together.nodes
        ],
        "between": [each.to_plain() for each in together.between],
        "links": [
            {
                "source": together.names[link.source],
                "target": together.names[link.target],
                "port": link.port.name.lower(),
                "free_port": link.free.name.lower(),
                "rtt_s": link.rtt_s,
                "bytes_per_s": link.bytes_per_s,
            }
            for link in together.links
        ],
    }
