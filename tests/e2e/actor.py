"""A worker that meets the others once and then does what ACT says."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist


def main(argv: list[str]) -> int:
    dist.init_process_group("gloo")
    rank, attempt = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
    total = torch.ones(1)
    dist.all_reduce(total)
    terminal = sys.stderr.isatty()
    # In one piece: with PYTHONUNBUFFERED set, print writes the end of the line by itself.
    sys.stdout.write(f"rank {rank} attempt {attempt} met {int(total)} terminal {terminal}\n")
    sys.stdout.flush()
    if rank == 1:
        code = act(os.environ["ACT"], attempt)
        if code:
            return code
    if os.environ["ACT"] == "wait":
        time.sleep(600)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def act(name: str, attempt: str) -> int:
    """What rank 1 does; its exit code."""
    if name == "raise":
        raise ValueError("boom")
    if name == "resumable":
        return 75
    if name == "die" or (name == "die once" and attempt == "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0
