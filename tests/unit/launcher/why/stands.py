"""Ranks that stand, for tests: two bundles of two stages on two nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bundlerun.launcher.why.sheet import Message, Talk
from bundlerun.launcher.why.stacks import Frame, Thread
from bundlerun.launcher.why.stands import Stand

USERS = Frame("/home/u/recipe.py", 41, "loss")
OURS = Frame("/x/torch/utils/data/dataloader.py", 1, "get")


def thread(*frames: Frame) -> tuple[Thread, ...]:
    return (Thread("MainThread", frames),)


def stand(rank: int, phase: str, **values: Any) -> Stand:
    """Of rank 2 b + s: stage s of bundle b, on node b."""
    found = Stand(
        token=7,
        rank=rank,
        world_size=4,
        node_name=f"n{rank // 2}",
        local_rank=rank % 2,
        bundle=rank // 2,
        stage=rank % 2,
        replica=0,
        pid=1000 + rank,
        step=12,
        age_s=18.0,
        limit_s=20.0,
        phase=phase,
        peer=-1,
        message=Message.NONE,
        microbatch=-1,
        talk=Talk.NONE,
        legs={},
        state="S",
    )
    return replace(found, **values)


def receives(rank: int, peer: int, message: Message = Message.ACTIVATION) -> Stand:
    return stand(rank, "receive", peer=peer, message=message, microbatch=3)
