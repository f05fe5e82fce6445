"""A link delivers whole messages in order, and posts its receives ahead."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from tests.ranks.harness import outcomes, run_ranks
from workers.comm import Group, Network
from workers.env import RankEnv
from workers.links import InLink, Kind, OutLink, specs_of

TRAIN, EVAL = Kind(True, 4), Kind(False, 4)
CHUNK_BYTES = 4 << 20


def link_ends(
    sender: Callable[[OutLink], None],
    receiver: Callable[[InLink], None],
    *,
    told: bool = True,
) -> Callable[[RankEnv, Store], None]:
    """What two ranks do: the first sends, the second receives."""

    def main(env: RankEnv, store: Store) -> None:
        network = Network(
            store=store, rank=env.rank, backend="gloo", timeout_s=20, address="127.0.0.1"
        )
        group = Group(network, "link", (0, 1), "gloo")
        if env.rank == 0:
            out = OutLink(group, tells_specs=told)
            sender(out)
            out.finish()
        else:
            receiver(InLink(group, torch.device("cpu"), is_told_specs=told))
        # Both ends stay until both are done: a closed end would cut the other one off.
        group.all_reduce(torch.zeros(1)).wait()

    return main


def message(number: int) -> list[Tensor]:
    """Several tensors of unlike dtype, shape and memory layout; one that requires grad."""
    generator = torch.Generator().manual_seed(number)
    wide = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return [
        wide.t().requires_grad_(),
        torch.tensor(number),
        torch.randn(2, 7, generator=generator).to(torch.bfloat16),
        torch.randn(6, generator=generator) > 0,
        torch.empty(0, 3),
    ]


def assert_message(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert specs_of(found) == specs_of(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(t.is_leaf for t in found)


def test_messages_of_any_dtype_arrive_whole_and_in_order(tmp_path: Path) -> None:
    count = 40  # more than the sender keeps unwaited

    def send(out: OutLink) -> None:
        for number in range(count):
            out.send(TRAIN, message(number))

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * count)
        for number in range(count):
            assert_message(link.receive(), message(number))

    run_ranks((2,), link_ends(send, receive), tmp_path)


def test_training_and_evaluation_may_send_different_tensors(tmp_path: Path) -> None:
    kinds = [TRAIN, EVAL, EVAL, TRAIN, Kind(True, 1), TRAIN, EVAL]
    made = {TRAIN: message, EVAL: lambda n: [torch.full((4,), n)], Kind(True, 1): lambda n: []}

    def send(out: OutLink) -> None:
        for number, kind in enumerate(kinds):
            out.send(kind, made[kind](number))

    def receive(link: InLink) -> None:
        link.expect(kinds[:3])
        for number, kind in enumerate(kinds):
            if number == 2:
                link.expect(kinds[3:])
            assert_message(link.receive(), made[kind](number))

    run_ranks((2,), link_ends(send, receive), tmp_path)


def test_a_message_longer_than_a_chunk_arrives_whole(tmp_path: Path) -> None:
    sizes = [CHUNK_BYTES // 8, CHUNK_BYTES // 8 + 1, 2 * CHUNK_BYTES // 8 + 5]

    def tensors() -> list[Tensor]:
        return [torch.arange(size, dtype=torch.float64) for size in sizes]

    def send(out: OutLink) -> None:
        for _ in range(2):
            out.send(TRAIN, tensors())

    def receive(link: InLink) -> None:
        link.expect([TRAIN, TRAIN])
        for _ in range(2):
            assert_message(link.receive(), tensors())

    run_ranks((2,), link_ends(send, receive), tmp_path)


def test_a_spec_travels_once_per_kind(tmp_path: Path) -> None:
    class Counted(Group):
        """Counts what is sent."""

        num_sent = 0

        def send(self, tensor: Tensor, to: int) -> list[torch.distributed.Work]:
            self.num_sent += 1
            return super().send(tensor, to)

    def main(env: RankEnv, store: Store) -> None:
        network = Network(store=store, rank=env.rank, backend="gloo", timeout_s=20)
        group = Counted(network, "link", (0, 1), "gloo")
        kinds = [TRAIN, TRAIN, EVAL, TRAIN, EVAL]
        if env.rank == 0:
            out = OutLink(group, tells_specs=True)
            for kind in kinds:
                out.send(kind, [torch.ones(3)])
            out.finish()
            assert group.num_sent == len(kinds) + len(set(kinds))
        else:
            link = InLink(group, torch.device("cpu"), is_told_specs=True)
            link.expect(kinds)
            assert all(torch.equal(link.receive()[0], torch.ones(3)) for _ in kinds)
        group.all_reduce(torch.zeros(1)).wait()

    run_ranks((2,), main, tmp_path)


def test_an_untold_link_goes_by_what_the_receiver_learns(tmp_path: Path) -> None:
    def send(out: OutLink) -> None:
        for number in range(3):
            out.send(TRAIN, [torch.full((2, 2), float(number))])

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * 3)
        link.learn(TRAIN, specs_of([torch.empty(2, 2)]))
        for number in range(3):
            assert_message(link.receive(), [torch.full((2, 2), float(number))])

    run_ranks((2,), link_ends(send, receive, told=False), tmp_path)


def test_the_next_messages_arrive_while_nobody_asks_for_them(tmp_path: Path) -> None:
    """Gloo ends a send only once its receive is posted, so a send that ends proves one ahead."""
    sent = tmp_path / "sent"

    def send(out: OutLink) -> None:
        for number in range(3):
            out.send(TRAIN, [torch.full((1 << 18,), number)])
        out.finish()
        sent.touch()

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * 3)
        assert link.receive()[0][0] == 0
        deadline = time.monotonic() + 10
        while not sent.exists():
            assert time.monotonic() < deadline, "the second and third receive were not posted"
            time.sleep(0.005)
        assert [int(link.receive()[0][0]) for _ in range(2)] == [1, 2]

    run_ranks((2,), link_ends(send, receive), tmp_path)


@pytest.mark.parametrize("second", [torch.ones(4), torch.ones(3).double()], ids=["shape", "dtype"])
def test_messages_of_one_kind_that_differ_are_refused(second: Tensor, tmp_path: Path) -> None:
    def send(out: OutLink) -> None:
        out.send(TRAIN, [torch.ones(3)])
        out.send(TRAIN, [second])

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * 2)
        link.receive()
        link.receive()

    found = outcomes((2,), link_ends(send, receive), tmp_path, 30)
    assert "crossed a cut before" in found[0]
    assert 1 in found
