"""The main job on this machine: two nodes of two bundles train a ResNet-18 on handwritten digits.

Each "node" is an elastic agent with a process tree of its own; on two real machines the same
command runs once on each, with the first machine's address as --rdzv-endpoint.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

NUM_NODES = 2
WANTED_TOP1 = 0.97
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "digits"


def command(node: int, port: int, run_dir: Path) -> list[str]:
    """What a person would type on one node."""
    return [
        str(Path(sys.executable).with_name("bundlerun")),
        "run",
        f"--nnodes={NUM_NODES}",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--local-addr=127.0.0.1",
        f"--rdzv-id={run_dir.name}",
        f"--node-name=node{node}",
        "--devices=cpu",
        "--slots=4",
        "--threads=1",
        "--shape=1,1",
        "--cut=layer2.1",
        "--model=resnet18",
        "--image-size=64",
        "--augment=none",
        "--batch-size=64",
        "--microbatch-size=8",
        "--epochs=6",
        "--lr=0.05",
        "--weight-decay=1e-4",
        "--lr-schedule=one-cycle",
        f"--run-dir={run_dir}",
        str(DATA),
    ]


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Runs the two nodes; the exit code says whether they learned to read digits."""
    run_dir = ROOT / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    port = free_port()
    commands = [command(node, port, run_dir) for node in range(NUM_NODES)]
    print(f"node 0: {shlex.join(commands[0])}\nnode 1: the same, --node-name=node1\n", flush=True)
    nodes = [subprocess.Popen(words) for words in commands]
    try:
        codes = [node.wait() for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
    if any(codes):
        print(f"the nodes ended with exit codes {codes}", file=sys.stderr)
        return max(codes)
    top1 = json.loads((run_dir / "summary.json").read_text())["validation"]["top1"]
    print(f"\n{top1:.2%} of the held-out digits are read right (wanted: {WANTED_TOP1:.0%})")
    return 0 if top1 >= WANTED_TOP1 else 1


if __name__ == "__main__":
    sys.exit(main())
