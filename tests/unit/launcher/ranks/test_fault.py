from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed import DistNetworkError

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.ranks.fault import Fault, FaultKind, PeerGoneError, fault_of, is_follower
from bundlerun.workers.rank.comm import Group, Network


def raised(act: Callable[[], object]) -> Exception:
    try:
        act()
    except Exception as exc:
        return exc
    raise AssertionError("nothing was raised")


def raises(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def lost_peer() -> None:
    """What gloo raises where the other rank does not come: a RuntimeError of no type of its own."""
    network = Network(store=HashStore(), rank=0, backend="gloo", timeout_s=0.1, address="127.0.0.1")
    Group(network, "g", [0, 1], "gloo")


def broken_model() -> None:
    nn.Linear(2, 2)(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (raises(OSError("stale file handle")), FaultKind.PASSING),
        (raises(ConnectionResetError()), FaultKind.PASSING),
        (raises(DistNetworkError("gone")), FaultKind.PASSING),
        (raises(PeerGoneError("rank 1 is gone")), FaultKind.PASSING),
        (lost_peer, FaultKind.PASSING),
        (broken_model, FaultKind.PROGRAM),
        (raises(ValueError("corrupt record 77")), FaultKind.PROGRAM),
        (raises(torch.OutOfMemoryError("no room")), FaultKind.PROGRAM),
        (raises(ModuleNotFoundError("no timm")), FaultKind.HOPELESS),
        (raises(SyntaxError("of a user file")), FaultKind.HOPELESS),
        (raises(TypeError("build() takes 0 arguments")), FaultKind.HOPELESS),
        (raises(AttributeError("'dict' object has no attribute 'flatten'")), FaultKind.HOPELESS),
    ],
)
def test_what_another_try_would_change(act: Callable[[], object], kind: FaultKind) -> None:
    assert fault_of(raised(act), 0).kind is kind


def told_with_its_cause() -> None:
    raise NodeError("cannot be reached") from DistNetworkError("refused")


@pytest.mark.parametrize(
    ("act", "is_so"),
    [
        (lost_peer, True),
        (raises(RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer")), True),
        (raises(ConnectionResetError()), True),
        (raises(BrokenPipeError()), True),
        (raises(PeerGoneError("rank 1 is gone")), True),
        (told_with_its_cause, True),
        (raises(OSError("stale file handle")), False),
        (raises(FileNotFoundError("Connection.jpg")), False),
        (raises(RuntimeError("the snapshot was damaged: 'w' is gone")), False),
        (raises(ValueError("gloo")), False),
        (broken_model, False),
    ],
)
def test_an_error_that_only_follows_from_the_end_of_another_rank(
    act: Callable[[], object], is_so: bool
) -> None:
    assert is_follower(raised(act)) == is_so


def test_the_place_is_type_and_frames_and_step() -> None:
    def at(act: Callable[[], object], step: int) -> Fault:
        return fault_of(raised(act), step)

    assert at(broken_model, 3) == at(broken_model, 3)
    assert at(broken_model, 3) != at(broken_model, 4)
    assert at(raises(ValueError("a")), 3) == at(raises(ValueError("b")), 3)  # the text may vary
    assert at(raises(ValueError()), 3) != at(raises(KeyError()), 3)
    assert 0 <= at(broken_model, 3).place < 1 << 63
