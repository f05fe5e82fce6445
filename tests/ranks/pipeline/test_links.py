"""A link delivers whole messages in order, receives ahead, and lets nobody wait in a circle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.pipeline.links import InLink, Kind, OutLink, specs_of
from bundlerun.workers.pipeline.slots import SlotReceiver, SlotSender
from bundlerun.workers.pipeline.transports import Sender, StagedSender
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.groups import make_links
from bundlerun.workers.values.strides import are_alike
from tests.ranks.harness import outcomes, run_ranks
from tests.waiting import wait_until

TRAIN, EVAL = Kind(True, 4), Kind(False, 4)
GLOO_CHUNK_BYTES = 4 << 20
MEMORY, GLOO = True, False
BOTH = pytest.mark.parametrize("shares", [MEMORY, GLOO], ids=["memory", "gloo"])


def link_group(
    env: RankEnv, store: Store, shares: bool, src: int = 0, timeout_s: float = 20.0
) -> Group:
    """Two ranks, the sender first."""
    network = Network(
        store=store, rank=env.rank, backend="gloo", timeout_s=timeout_s, address="127.0.0.1"
    )
    return Group(network, f"link{src}", (src, 1 - src), "gloo", is_one_node=shares)


def link_ends(
    sender: Callable[[OutLink], None],
    receiver: Callable[[InLink], None],
    shares: bool,
    *,
    told: bool = True,
) -> Callable[[RankEnv, Store], None]:
    """What two ranks do: the first sends, the second receives."""

    def main(env: RankEnv, store: Store) -> None:
        group = link_group(env, store, shares)
        if env.rank == 0:
            out = OutLink(group, tells_specs=told, max_ahead=2)
            assert isinstance(unstaged(out._sender), SlotSender) == shares
            sender(out)
            out.finish()
        else:
            link = InLink(group, torch.device("cpu"), is_told_specs=told)
            assert isinstance(link._receiver, SlotReceiver) == shares
            receiver(link)
        # Both ends stay until both are done: a closed end would cut the other one off.
        group.all_reduce(torch.zeros(1)).wait()

    return main


def unstaged(sender: Sender) -> Sender:
    """What sends from CPU memory, on a machine with or without a GPU."""
    return sender._sender if isinstance(sender, StagedSender) else sender


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
        torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        torch.randn(4, 1, generator=generator).expand(4, 3),
        torch.randn(1, 4, generator=generator)[:, 2],  # contiguous, whatever its stride
    ]


def assert_message(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(specs_of(found), specs_of(wanted), strict=True):
        assert one._replace(strides=()) == other._replace(strides=())
        assert are_alike(one.shape, one.strides, other.strides)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(t.is_leaf for t in found)


@BOTH
def test_messages_of_any_dtype_arrive_whole_and_in_order(shares: bool, tmp_path: Path) -> None:
    count = 40  # more than the sender keeps unwaited

    def send(out: OutLink) -> None:
        for number in range(count):
            out.send(TRAIN, message(number))

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * count)
        for number in range(count):
            assert_message(link.receive(), message(number))

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@BOTH
def test_training_and_evaluation_may_send_different_tensors(shares: bool, tmp_path: Path) -> None:
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

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@BOTH
def test_messages_of_other_shapes_are_described_one_by_one(shares: bool, tmp_path: Path) -> None:
    def kinds(step: int) -> list[Kind]:
        return [Kind(step % 2 == 0, 2, number) for number in range(4)]

    def made(step: int, number: int) -> list[Tensor]:
        return [torch.full((step + number, 3), float(number)), *message(number)[: number + 1]]

    def send(out: OutLink) -> None:
        for step in range(6):
            for number, kind in enumerate(kinds(step)):
                out.send(kind, made(step, number), ["is", f"{step} {number}"])

    def receive(link: InLink) -> None:
        for step in range(6):
            link.expect(kinds(step))
            for number in range(4):
                found, form = link.receive_formed()
                assert_message(found, made(step, number))
                assert form == ["is", f"{step} {number}"]

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@BOTH
def test_a_message_longer_than_a_chunk_arrives_whole(shares: bool, tmp_path: Path) -> None:
    sizes = [n // 8 for n in (GLOO_CHUNK_BYTES, GLOO_CHUNK_BYTES + 8, 2 * GLOO_CHUNK_BYTES + 40)]

    def tensors() -> list[Tensor]:
        return [torch.arange(size, dtype=torch.float64) for size in sizes]

    def send(out: OutLink) -> None:
        for _ in range(2):
            out.send(TRAIN, tensors())

    def receive(link: InLink) -> None:
        link.expect([TRAIN, TRAIN])
        for _ in range(2):
            assert_message(link.receive(), tensors())

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@BOTH
def test_a_spec_travels_once_per_kind(shares: bool, tmp_path: Path) -> None:
    kinds = [TRAIN, TRAIN, EVAL, TRAIN, EVAL]

    def send(out: OutLink) -> None:
        sent: list[Sequence[Tensor]] = []
        honest = out._sender.send
        out._sender.send = lambda tensors: (sent.append(tensors), honest(tensors))
        for kind in kinds:
            out.send(kind, [torch.ones(3)])
        assert len(sent) == len(kinds) + len(set(kinds))

    def receive(link: InLink) -> None:
        link.expect(kinds)
        assert all(torch.equal(link.receive()[0], torch.ones(3)) for _ in kinds)

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@BOTH
def test_an_untold_link_goes_by_what_the_receiver_learns(shares: bool, tmp_path: Path) -> None:
    def send(out: OutLink) -> None:
        for number in range(3):
            out.send(TRAIN, [torch.full((2, 2), float(number))])

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * 3)
        link.learn(TRAIN, specs_of([torch.empty(2, 2)]))
        for number in range(3):
            assert_message(link.receive(), [torch.full((2, 2), float(number))])

    run_ranks((2,), link_ends(send, receive, shares, told=False), tmp_path)


@BOTH
def test_the_next_messages_arrive_while_nobody_asks_for_them(shares: bool, tmp_path: Path) -> None:
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
        wait_until(sent.exists, "the second and third receive were not posted")
        assert [int(link.receive()[0][0]) for _ in range(2)] == [1, 2]

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


@BOTH
def test_two_that_are_far_ahead_of_each_other_do_not_wait_in_a_circle(
    shares: bool, tmp_path: Path
) -> None:
    """Each sends more than any transport holds before it receives: `send` must wait for nobody."""
    count, size = 40, 200_000

    def main(env: RankEnv, store: Store) -> None:
        groups = [link_group(env, store, shares, src) for src in range(2)]
        ends: list[OutLink | InLink] = [
            OutLink(group, tells_specs=True)
            if env.rank == src
            else InLink(group, torch.device("cpu"), is_told_specs=True)
            for src, group in enumerate(groups)
        ]
        out, link = ends[env.rank], ends[1 - env.rank]
        assert isinstance(out, OutLink)
        assert isinstance(link, InLink)
        link.expect([TRAIN] * count)
        for number in range(count):
            out.send(TRAIN, [torch.full((size,), float(number), dtype=torch.float64)])
        groups[0].all_reduce(torch.zeros(1)).wait()
        for number in range(count):
            found = link.receive()[0]
            assert found[0] == found[-1] == number
        out.finish()
        groups[0].all_reduce(torch.zeros(1)).wait()

    run_ranks((2,), main, tmp_path)


@BOTH
def test_an_evaluation_runs_ahead_only_so_far(shares: bool, tmp_path: Path) -> None:
    count, size = 30, 1 << 20
    log = tmp_path / "log"
    log.touch()
    held = 2 + 1  # that may wait; one more for the spec
    held += 0 if shares else 2  # posted by the receiver

    def num_sent() -> int:
        return log.stat().st_size

    def send(out: OutLink) -> None:
        for _ in range(count):
            out.send(EVAL, [torch.zeros(size, dtype=torch.uint8)])
            with log.open("a") as file:
                file.write(".")

    def receive(link: InLink) -> None:
        link.expect([EVAL] * count)
        for number in range(count):
            wanted = min(number + 2, count)
            wait_until(lambda wanted=wanted: num_sent() >= wanted, "the sender is not ahead")
            assert num_sent() <= number + held
            link.receive()

    run_ranks((2,), link_ends(send, receive, shares), tmp_path)


def test_what_has_left_arrives_even_if_the_sender_has_ended(tmp_path: Path) -> None:
    done = tmp_path / "done"

    def main(env: RankEnv, store: Store) -> None:
        group = link_group(env, store, MEMORY)
        if env.rank == 0:
            out = OutLink(group, tells_specs=True)
            for number in range(3):
                out.send(TRAIN, message(number))
            out.finish()
            done.touch()
            return
        link = InLink(group, torch.device("cpu"), is_told_specs=True)
        link.expect([TRAIN] * 3)
        wait_until(done.exists, "the sender waits for the receiver")
        for number in range(3):
            assert_message(link.receive(), message(number))

    run_ranks((2,), main, tmp_path)


def test_links_within_a_node_share_memory_and_others_do_not(tmp_path: Path) -> None:
    topology = Topology(Shape((1, 1, 1)), (2, 1))

    def main(env: RankEnv, store: Store) -> None:
        network = Network(
            store=store, rank=env.rank, backend="gloo", timeout_s=20, address="127.0.0.1"
        )
        links = make_links(topology, topology.places[env.rank], network)
        for link, group in links.items():
            assert group.is_one_node == (2 not in (link.src, link.dst))

    run_ranks((2, 1), main, tmp_path)


def test_where_memory_cannot_be_shared_gloo_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(env: RankEnv, store: Store) -> None:
        monkeypatch.setattr(
            "bundlerun.workers.rank.node_memory.this_machine", lambda: f"machine {env.rank}"
        )
        group = link_group(env, store, MEMORY)
        if env.rank == 0:
            out = OutLink(group, tells_specs=True)
            out.send(TRAIN, message(1))
            out.finish()
        else:
            link = InLink(group, torch.device("cpu"), is_told_specs=True)
            link.expect([TRAIN])
            assert_message(link.receive(), message(1))
        group.all_reduce(torch.zeros(1)).wait()

    run_ranks((2,), main, tmp_path)


@pytest.mark.parametrize("second", [torch.ones(4), torch.ones(3).double()], ids=["shape", "dtype"])
def test_messages_of_one_kind_that_differ_are_refused(second: Tensor, tmp_path: Path) -> None:
    def send(out: OutLink) -> None:
        out.send(TRAIN, [torch.ones(3)])
        out.send(TRAIN, [second])

    def receive(link: InLink) -> None:
        link.expect([TRAIN] * 2)
        link.receive()
        link.receive()

    found = outcomes((2,), link_ends(send, receive, MEMORY), tmp_path, 30)
    assert "crossed a cut before" in found[0]
    assert 1 in found
