"""A worker that meets the others again and again, until the file STOP is there.

python rendezvous_actor.py STOP; prints one line for each round that it gets into.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore


def main(stop: Path) -> None:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    number = TCPStore(address, port, is_master=False).get("rendezvous/round").decode()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.all_reduce(torch.ones(1))
    line = f"round {number} rank {rank} of {size} pid {os.getpid()} at {time.monotonic():.3f}\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    is_over = torch.zeros(1)
    while not is_over:
        time.sleep(0.02)
        is_over = torch.tensor([float(rank == 0 and stop.exists())])
        dist.all_reduce(is_over)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
