"""Messages from GPU to GPU, on the stand-in: nothing is copied before somebody waits for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.workers.device import accelerator, shared_memory
from bundlerun.workers.device.interface import Event
from bundlerun.workers.pipeline import device_slots, device_trial
from bundlerun.workers.pipeline.device_slots import DeviceSlotReceiver, DeviceSlotSender
from bundlerun.workers.pipeline.links import InLink, Kind, OutLink
from bundlerun.workers.pipeline.slots import SlotReceiver
from bundlerun.workers.pipeline.transports import StagedReceiver
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.pipeline.test_links import EVAL, TRAIN, assert_message, message
from tests.standin.device import Device
from tests.standin.ranks import on_standin
from tests.waiting import wait_until

GPU = "standin"
LARGE = Kind(True, 64)
COUNT = 6
Act = Callable[[Any, Device], None]


def gpu() -> torch.device:
    return torch.device(GPU, 0)


def ends(
    sender: Act, receiver: Act, *, timeout_s: float = 30.0, seed: int | None = None
) -> Callable[[RankEnv, Store], None]:
    """What two ranks of a node do: the first sends, the second receives."""

    def main(env: RankEnv, store: Store, device: Device) -> None:
        network = Network(
            store=store,
            rank=env.rank,
            backend="gloo",
            timeout_s=timeout_s,
            address="127.0.0.1",
            device=gpu(),
            tries_ipc=True,
        )
        group = Group(network, "link", (0, 1), "gloo", is_one_node=True)
        if env.rank:
            receiver(InLink(group, gpu(), is_told_specs=True), device)
        else:
            sender(OutLink(group, tells_specs=True, max_ahead=2), device)
        accelerator.drain(gpu())
        group.close()

    return on_standin(main, seed=seed)


def there(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same on the GPU, as leaves."""
    found = [accelerator.placed(t.detach(), gpu()) for t in tensors]
    return [f.requires_grad_(t.requires_grad) for f, t in zip(found, tensors, strict=True)]


def here(tensors: Sequence[Tensor]) -> list[Tensor]:
    found = [t.detach().cpu() for t in tensors]
    return [f.requires_grad_(t.requires_grad) for f, t in zip(found, tensors, strict=True)]


def large(number: int) -> list[Tensor]:
    """Longer than the slots are at first."""
    return [torch.full((3 << 20,), number, dtype=torch.uint8), torch.tensor([number])]


def send_all(out: OutLink, _: Device) -> None:
    """Messages of all kinds; what was sent is used again at once."""
    for number in range(COUNT):
        for kind, make in ((TRAIN, message), (LARGE, large)):
            tensors = there(make(number))
            out.send(kind, tensors)
            del tensors
            torch.full((3 << 20,), 255, dtype=torch.uint8, device=GPU)
    out.send(EVAL, message(COUNT))  # of the CPU, as targets are
    out.finish()


def receive_all(link: InLink, _: Device) -> None:
    link.expect([TRAIN, LARGE] * COUNT + [EVAL])
    kept = []
    for number in range(COUNT):
        for make in (message, large):
            # Looked at late: what is received stays as it was.
            kept.append((link.receive(), make(number)))
    kept.append((link.receive(), message(COUNT)))
    for found, wanted in kept:
        assert all(t.device == gpu() for t in found)
        assert_message(here(found), wanted)


def receive_directly(link: InLink, device: Device) -> None:
    assert isinstance(link._receiver, DeviceSlotReceiver)
    receive_all(link, device)


@pytest.mark.parametrize("seed", [None, 4])
def test_messages_of_all_kinds_arrive_whole_and_in_order(seed: int | None, tmp_path: Path) -> None:
    def send(out: OutLink, device: Device) -> None:
        assert isinstance(out._sender, DeviceSlotSender)
        before = device.record.waits.total()
        send_all(out, device)
        assert device.record.waits.total() == before  # it waits for bells only

    run_ranks((2,), ends(send, receive_directly, seed=seed), tmp_path)


Plant = Callable[[Any, pytest.MonkeyPatch], None]


def told(plant: Plant, folder: Path, *, is_eager: bool = False) -> str:
    """What is said of messages between ends with a mistake, planted once the trial is over.

    Args:
        plant: does it; called with each end.
        folder: for files.
        is_eager: whether the sender's GPU does at once what it is given.
    """

    def planted(act: Act) -> Act:
        def do(link: Any, device: Device) -> None:
            patch = pytest.MonkeyPatch()
            plant(link, patch)
            if is_eager and isinstance(link, OutLink):
                patch.setattr(DeviceSlotSender, "_send", sent_at_once)
            act(link, device)

        return do

    honest = DeviceSlotSender._send

    def sent_at_once(self: DeviceSlotSender, *message: Any) -> None:
        honest(self, *message)
        accelerator.drain(gpu())

    main = ends(planted(send_all), planted(receive_directly), timeout_s=5.0)
    return "\n".join(outcomes((2,), main, folder, 60).values())


def test_no_mistake_is_seen_where_none_is(tmp_path: Path) -> None:
    assert not told(lambda link, patch: None, tmp_path, is_eager=True)


def test_a_copy_to_a_slot_that_is_not_free_is_noticed(tmp_path: Path) -> None:
    all_sent = tmp_path / "sent"

    def send(out: OutLink, _: Device) -> None:
        sender: Any = out._sender
        sender._hear = lambda: sender._free.extend(range(2))
        for number in range(COUNT):
            out.send(TRAIN, there(message(number)))
        sender.wait(0)
        all_sent.touch()

    def receive(link: InLink, device: Device) -> None:
        wait_until(all_sent.exists, "the sender waits for a slot")
        link.expect([TRAIN] * COUNT)
        link.receive()

    # The first message of all says what comes, and is read at once.
    found = "\n".join(outcomes((2,), ends(send, receive), tmp_path, 60).values())
    assert "in unpacked" in found


def test_a_slot_that_is_given_back_before_it_is_read_is_noticed(tmp_path: Path) -> None:
    def plant(_: Any, patch: pytest.MonkeyPatch) -> None:
        honest = DeviceSlotReceiver._give_back

        class Now:
            def synchronize(self) -> None:
                pass

        patch.setattr(
            DeviceSlotReceiver, "_give_back", lambda self, number, done: honest(self, number, Now())
        )

    assert "in assert_message" in told(plant, tmp_path, is_eager=True)


class _Late:
    """A mark that is recorded only when the bell has been rung."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def record(self, stream: Any) -> None:
        threading.Timer(0.5, self._event.record, (stream,)).start()


def test_a_bell_before_the_mark_is_noticed(tmp_path: Path) -> None:
    def plant(link: Any, _: pytest.MonkeyPatch) -> None:
        if isinstance(link, OutLink):
            sender: Any = link._sender
            sender._copied = [_Late(event) for event in sender._copied]

    assert "in unpacked" in told(plant, tmp_path)


def test_a_copy_before_what_is_sent_is_made_is_noticed(tmp_path: Path) -> None:
    def plant(_: Any, patch: pytest.MonkeyPatch) -> None:
        honest = DeviceSlotSender._send
        patch.setattr(
            DeviceSlotSender, "_send", lambda self, tensors, ready: honest(self, tensors, None)
        )

    assert "no wait_event: copy" in told(plant, tmp_path)


def test_memory_of_a_message_on_its_way_is_not_used_again(tmp_path: Path) -> None:
    def plant(_: Any, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(accelerator, "used_by", lambda tensor, stream: None)

    assert "no record_stream" in told(plant, tmp_path)


# --- where it does not work


def refuse_memory(patch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Tensor:
        raise shared_memory.CannotShareError("opening is refused (code 217, NO_PEERS)")

    patch.setattr(device_slots, "memory_of", refused)


def refuse_marks(patch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Event:
        raise shared_memory.CannotShareError("another process's mark: none")

    patch.setattr(device_slots, "event_of", refused)


def have_marks_that_never_come(patch: pytest.MonkeyPatch) -> None:
    class Never:
        def query(self) -> bool:
            return False

    patch.setattr(device_slots, "event_of", lambda handle, device: Never())
    patch.setattr(device_trial, "LIMIT_S", 0.2)


def have_marks_of_no_use(patch: pytest.MonkeyPatch) -> None:
    class Already:
        def query(self) -> bool:
            return True

        def wait(self, stream: Any) -> None:
            pass

    patch.setattr(device_slots, "event_of", lambda handle, device: Already())


@pytest.mark.parametrize(
    ("plant", "why"),
    [
        (refuse_memory, "code 217, NO_PEERS"),
        (refuse_marks, "another process's mark: none"),
        (have_marks_that_never_come, "has not come within 0.2 s"),
        (have_marks_of_no_use, "wrong numbers"),
    ],
)
def test_where_the_trial_fails_messages_go_through_the_cpu(
    plant: Callable[[pytest.MonkeyPatch], None],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plant(monkeypatch)

    def receive(link: InLink, device: Device) -> None:
        lines = [record.message for record in caplog.records]
        assert len(lines) == 1
        assert "through CPU memory" in lines[0]
        assert why in lines[0]
        assert isinstance(link._receiver, StagedReceiver)
        assert isinstance(link._receiver._receiver, SlotReceiver)
        receive_all(link, device)

    run_ranks((2,), ends(send_all, receive), tmp_path)


# --- who dies or freezes


@pytest.mark.parametrize("dies", [True, False], ids=["gone", "frozen"])
@pytest.mark.parametrize("who", [0, 1], ids=["sender", "receiver"])
def test_an_end_that_is_gone_or_frozen_ends_the_other(dies: bool, who: int, tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    def other(real: Act) -> Act:
        def do(link: Any, device: Device) -> None:
            text = "is gone" if dies else "did not answer in 3"
            with pytest.raises(RuntimeError, match=text):
                real(link, device)
            ended.touch()
            os._exit(0)

        return do

    def gone(link: Any, device: Device) -> None:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_until(ended.exists, "the other end waits for ever")
        os._exit(0)

    acts = [other(send_all), other(receive_all)]
    acts[who] = gone
    found = outcomes((2,), ends(acts[0], acts[1], timeout_s=3.0), tmp_path, 40)
    assert set(found) == ({who} if dies else set())
    assert ended.exists()
