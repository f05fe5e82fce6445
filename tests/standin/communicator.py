"""A communicator that takes what NCCL takes and refuses what NCCL refuses; gloo does the work.

Like NCCL's it has a stream of its own. What it is asked to do waits for the current stream; who
waits for the answer lets the current stream wait. A thread does it as soon as it can be done, as a
kernel that spins would; before that the members compare notes of what each is about to do.

    CPU tensors                      refused where they are given
    two ranks of one device          refused at the first operation
    another operation, shape, type   refused by all members
    another order of communicators   the same
    a receive posted too early       a fault: its message depends on work that this process gave
                                     its streams after it. NCCL's receive spins on the device, and
                                     much of what is given later may have to wait for it

A rank's *knowledge* of others is how much they had given their streams when they sent what this
rank's streams have received; messages pass it on.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tests.standin.device import Device
from tests.standin.kernels import is_ours, leaves_of
from tests.standin.notes import Intent, News, exchanged
from tests.standin.queues import Point

_TAG = 0
_MESSAGES = ("send", "recv")


class Work:
    """What NCCL gives for an operation that has begun."""

    def __init__(self, device: Device, point: Point) -> None:
        self._device = device
        self._point = point

    def wait(self, timeout: object = None) -> bool:
        """Lets the current stream wait for it."""
        self._device.engine.let_wait(self._device.current, self._point)
        self._device.engine.check()
        return True

    def is_completed(self) -> bool:
        """Whether it is done."""
        return self._device.engine.has_reached(self._point)

    def synchronize(self) -> None:
        """The same as `wait`."""
        self.wait()


class Asked(NamedTuple):
    """An operation that a communicator was asked for.

    Args:
        name: of the operation.
        what: that, with whatever must be alike on all members.
        peer: of a message; 0 where all members take part.
        reads: tensors of the device.
        writes: the same.
    """

    name: str
    what: str
    peer: int
    reads: Sequence[Tensor]
    writes: Sequence[Tensor]


class Begun(NamedTuple):
    """An operation that was given to the communicator's stream, as the `index`th thing.

    Args:
        asked: what it is.
        intent: what this member says of it.
        agreed: set when the members have compared that.
        index: in the stream.
    """

    asked: Asked
    intent: Intent
    agreed: threading.Event
    index: int


Place = tuple[int, int]


class Process:
    """What the communicators of a process have in common.

    Args:
        device: of the process.
        may_share: whether two ranks may have one device, which newer versions can be told.
    """

    def __init__(self, device: Device, *, may_share: bool = False) -> None:
        self.device = device
        self.may_share = may_share
        self.num_begun: Counter[str] = Counter()
        """Collectives by communicator."""


class Communicator:
    """Of some ranks; has what `workers.rank.comm` asks of torch's backends.

    Args:
        process: of this rank.
        gloos: two groups of the members: one does the work, one carries notes of what is begun.
        name: the same on all members.
        place: of this member: its index, and how many there are.
        is_link: whether it is for messages only.
    """

    def __init__(
        self, process: Process, gloos: tuple[Any, Any], name: str, place: Place, *, is_link: bool
    ) -> None:
        self._process = process
        self._device = process.device
        self._gloo, self._notes = gloos
        self._name = name
        self._index, self._size = place
        self._is_link = is_link
        self._num_begun = 0
        if not is_link:
            process.num_begun[name] = 0
        self._queue = self._device.new_queue(waits_for_others=True)
        self._inbox: queue.SimpleQueue[Begun | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pump, name=f"nccl-{name}", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        """Does what was asked for as soon as it can be done."""
        engine = self._device.engine
        while (begun := self._inbox.get()) is not None:
            try:
                if engine.failure is None:
                    self._agree(begun)
            except RuntimeError as exc:  # told to whoever waits for the device
                engine.failure = engine.failure or exc
            finally:
                begun.agreed.set()
            engine.pump(self._queue, begun.index)

    def shutdown(self) -> None:
        """Ends it, when all that was begun is done."""
        self._device.engine.reach(self._device.engine.point(self._queue))
        self._inbox.put(None)
        self._thread.join()

    abort = shutdown

    # --- what can be asked for

    def send(self, tensors: Any, to: int, tag: int) -> Work:
        return self._begin(self._asked("send", tensors, [], peer=to), tensors, to, _TAG)

    def recv(self, tensors: Any, source: int, tag: int) -> Work:
        return self._begin(self._asked("recv", [], tensors, peer=source), tensors, source, _TAG)

    def allreduce(self, tensors: Any, options: Any) -> Work:
        asked = self._asked("allreduce", tensors, tensors, options.reduceOp.op)
        return self._begin(asked, tensors, options)

    def reduce(self, tensors: Any, options: Any) -> Work:
        asked = self._asked("reduce", tensors, tensors, options.rootRank)
        return self._begin(asked, tensors, options)

    def broadcast(self, tensors: Any, options: Any) -> Work:
        has_it = self._index == options.rootRank
        reads, writes = (tensors, []) if has_it else ([], tensors)
        return self._begin(
            self._asked("broadcast", reads, writes, options.rootRank), tensors, options
        )

    def allgather(self, out: Any, tensors: Any, options: Any) -> Work:
        return self._begin(self._asked("allgather", tensors, out), out, tensors, options)

    def _allgather_base(self, out: Tensor, tensor: Tensor, options: Any) -> Work:
        asked = self._asked("_allgather_base", [tensor], [out])
        return self._begin(asked, out, tensor, options, is_in_place=True)

    def _reduce_scatter_base(self, out: Tensor, tensor: Tensor, options: Any) -> Work:
        asked = self._asked("_reduce_scatter_base", [tensor], [out])
        return self._begin(asked, out, tensor, options, is_in_place=True)

    def _asked(self, name: str, reads: Any, writes: Any, root: object = "", peer: int = 0) -> Asked:
        reads, writes = leaves_of(reads), leaves_of(writes)
        for tensor in (*reads, *writes):
            if not is_ours(tensor):
                raise ValueError("Tensors must be CUDA and dense")
            if not tensor.is_contiguous():
                raise ValueError("Tensors must be contiguous")
        first = [*reads, *writes][0]
        kind = "message" if name in _MESSAGES else name
        return Asked(name, f"{kind} of {first.numel()} {first.dtype} {root}", peer, reads, writes)

    def _begin(self, asked: Asked, *args: Any, is_in_place: bool = False) -> Work:
        """Gives an operation to the communicator's stream, after what the current one has.

        Args:
            asked: what it is.
            args: as gloo wants them.
            is_in_place: whether what it reads may be a part of what it writes, or the other way
                round, which gloo does not take.
        """
        engine, queue = self._device.engine, self._queue
        intent = self._intent(asked)
        engine.let_wait(queue, engine.point(self._device.current))
        operation = getattr(self._gloo, asked.name)
        plain = [self._plain(each) for each in args]
        agreed, given = threading.Event(), engine.num_given + 1

        def work() -> None:
            agreed.wait()
            engine.check()
            self._tell(asked, given)
            apart = [a.clone() if is_in_place and i == 1 else a for i, a in enumerate(plain)]
            operation(*apart).wait()

        # torch keeps what is under way.
        for tensor in (*asked.reads, *asked.writes):
            self._device.memory.block(tensor).told.add(queue.number)
        uses = [self._device.use(t, writes=False) for t in asked.reads]
        uses += [self._device.use(t, writes=True) for t in asked.writes]
        index = self._device.give(asked.name, work, uses, queue)
        point = engine.point(queue)
        self._inbox.put(Begun(asked, intent, agreed, index))
        return Work(self._device, point)

    def _plain(self, value: Any) -> Any:
        """For gloo."""
        if isinstance(value, list):
            return [self._plain(each) for each in value]
        return self._device.plain(value) if is_ours(value) else value

    # --- what members tell each other

    def _intent(self, asked: Asked) -> Intent:
        """What this member is about to do."""
        counts = self._process.num_begun
        self._num_begun += 1
        if not self._is_link:
            counts[self._name] += 1
        return Intent(
            what=asked.what,
            number=self._num_begun,
            others={} if self._is_link else dict(counts),
            device=self._device.name,
        )

    def _agree(self, begun: Begun) -> None:
        """Compares what the members are about to do; the device fails where that does not fit."""
        found = self._exchanged(self._notes, begun.asked, begun.intent, Intent)
        for index, intent in found.items():
            unlike = begun.intent.unlike(intent, may_share=self._process.may_share)
            if unlike is not None:
                kind, text = unlike
                text = f"ranks {self._index} and {index} of {self._name}: {text}"
                self._device.record.fault(kind, text)
                raise RuntimeError(text)

    def _tell(self, asked: Asked, given: int) -> None:
        """Tells what an operation depends on here, and hears what it depends on there."""
        knows = self._queue.knows(self._queue.done)
        own = News(process=self._device.process, given=given, knows=knows)
        for index, news in self._exchanged(self._gloo, asked, own, News).items():
            if news.knows.get(own.process, 0) > given:
                self._device.record.fault(
                    "early receive",
                    f"{asked.what} from rank {index} of {self._name} was begun before what it "
                    "waits for here",
                )
            self._queue.learn({**news.knows, news.process: news.given})

    def _exchanged(
        self, gloo: Any, asked: Asked, own: Intent | News, make: type[Any]
    ) -> dict[int, Any]:
        way = asked.name, asked.peer
        return exchanged(gloo, own, make, index=self._index, size=self._size, way=way)
