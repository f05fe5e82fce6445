"""One forward of a model without numbers: which calls it makes, and who needs what of whom.

    number   0           1           2            3             4
    call     embedding   shape       linear       add           linear
    state    wte                     h.0.weight                 h.1.weight
    made     (0, 0)                  (2, 0)       (3, 0)        (4, 0)
    entered  wte                     h.0                        h.1

Every call of a function of torch has a number. What a call makes is named by it: (number, place
among its results). The user's code holds ghosts; the calls are done on fakes, which know shape,
type and device. What comes of no input and no parameter, such as a table of positions, is computed
for real: each stage does that for itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.utils._pytree import tree_leaves, tree_map

from bundlerun.splits.replay.calls import (
    checkpointed,
    describes,
    draws,
    is_checkpoints,
    is_counter,
    name_of,
    one_of,
    overwrites,
    reads,
    reads_counter,
    sets_grad_mode,
    users_line,
)
from bundlerun.splits.replay.composite import Watch, seen_again, unseen
from bundlerun.splits.replay.ghosts import Ghost, GhostNode, fake_like, fake_mode
from bundlerun.splits.replay.memo import Memo, key_of
from bundlerun.splits.replay.operations import OperationCounter
from bundlerun.splits.replay.record import Call, Key, Reached, Record, Unforeseen
from bundlerun.splits.replay.state import state_of

_END = sys.maxsize
_NUMBERS = (bool, int, float)
_MOST_TOLD = 1024
"""Numbers of an input that is taken as it is, not as a ghost: boxes, lengths, labels."""


class DryRun(Watch):
    """Runs a forward without numbers.

    Args:
        model: whose parameters and buffers are looked at only.
        device: where it is to be thought.
        until: the name of a module at whose first entry to end; nothing: go on to the end.
        is_high: whether random numbers between limits are the highest there are, or the lowest.
        known: what calls give that read numbers, by the number of the call.
        said: the same by the line of the user's code that calls, where the number is another one.
        counts: whether to count operations.
        memo: of what calls give, where only their results are wanted.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        until: str = "",
        is_high: bool = False,
        known: Mapping[int, object] = MappingProxyType({}),
        said: Mapping[str, object] = MappingProxyType({}),
        counts: bool = False,
        memo: Memo | None = None,
    ) -> None:
        super().__init__()
        self.record = Record()
        self.device = device
        self.counter = OperationCounter() if counts else None
        self._until = until
        self._is_high = is_high
        self._known = known
        self._said = said
        self._ambiguous: set[str] = set()
        self._memo = memo
        self._remembered: set[int] = set()
        self._names: dict[int, str] = {}
        for name, module in model.named_modules():
            self._names.setdefault(id(module), name)
        self._state = {id(t): t for m in model.modules() for t in state_of(m)}
        places = ((m, name, b) for m in model.modules() for name, b in m._buffers.items())
        self._buffers = [place for place in places if place[2] is not None]
        self._mode = fake_mode()
        self._fakes: dict[int, FakeTensor] = {}
        self._originals: dict[int, Tensor] = {}
        self._keys: dict[int, Key] = {}
        self._drawn: set[int] = set()
        self._constants: dict[int, Key] = {}
        self._kept: list[Tensor] = []
        self._depth = 0
        self._checkpoint: FrameType | None = None
        self._num_checkpoints = 0

    # --- what it is told

    def ghosts_of(self, inputs: Any) -> Any:  # noqa: ANN401 - any nested value
        """The inputs of the model as ghosts."""
        count = iter(range(_END))

        def ghost(tensor: Tensor) -> Tensor:
            if tensor.is_meta or isinstance(tensor, Ghost) or tensor.numel() > _MOST_TOLD:
                made = self._ghost(fake_like(self._mode, tensor, self.device))
            else:
                # Its numbers are known: what is decided by them is looked at each time.
                made = tensor.detach().clone()
                self._take_drawn(made)
            self._name((-1, next(count)), made)
            return made

        return tree_map(lambda v: ghost(v) if isinstance(v, Tensor) else v, inputs)

    def enter(self, module: nn.Module, args: object = None) -> None:
        """A module is entered: a hook of torch's.

        Raises:
            Reached: it is the one at which to end.
        """
        name = self._names.get(id(module))
        record = self.record
        if not name or any(name in seen for seen in (record.entries, record.inside)):
            return
        if self._depth:
            self.record.inside.add(name)
            return
        self._note_replaced()
        if self._is_recomputed():
            self.record.recomputed.add(name)
            return
        self.record.entries[name] = len(self.record.calls)
        if name == self._until:
            self._depth += 1  # what the user's code calls on its way out has no number
            raise Reached

    def _is_recomputed(self) -> bool:
        """Whether a stage that began here would have to recompute calls of the one before."""
        region = self._region()
        done = (call for call in reversed(self.record.calls) if not describes(call.func))
        last = next(done, None)
        return region > 0 and last is not None and last.region == region

    def _region(self) -> int:
        frame = checkpointed()
        if frame is not None and frame is not self._checkpoint:
            self._num_checkpoints += 1
            self._checkpoint = frame  # a frame is itself as long as somebody holds it
        return 0 if frame is None else self._num_checkpoints

    def _note_replaced(self) -> None:
        """Counts buffers as written that another tensor has been put in the place of by now."""
        changed = [b for b in self._buffers if b[0]._buffers.get(b[1]) is not b[2]]
        for *_, before in changed:
            self.record.state_uses.setdefault(id(before), []).append(len(self.record.calls) - 1)
            self.record.state_writes.add(id(before))
        if changed:
            known = set(map(id, changed))
            self._buffers = [place for place in self._buffers if id(place) not in known]

    def let_go(self) -> None:
        """The forward is over: what it was left from is no longer held.

        Torch 2.11 leaves the hooks of an activation checkpoint that has not come to its end as long
        as its frames are there.
        """
        self._checkpoint = None

    def end(self, result: object) -> None:
        """The forward has returned `result`."""
        self._note_replaced()
        for leaf in tree_leaves(result):
            if id(leaf) in self._keys:
                self.record.last_use[self._keys[id(leaf)]] = len(self.record.calls)

    def fail(self, why: str) -> None:
        """The forward has ended early: what its frames still hold may be used behind that."""
        self.record.failure = why
        results = (leaf for call in self.record.calls for leaf in tree_leaves(call.result))
        ours = (self._kept, self.record.looks.values(), self._originals.values(), results)
        held = Counter(id(tensor) for tensors in ours for tensor in tensors)
        for tensor in self._kept:
            # By the loop, and by the argument.
            if sys.getrefcount(tensor) > 2 + held[id(tensor)] and id(tensor) in self._keys:
                self.record.last_use[self._keys[id(tensor)]] = _END

    # --- calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - any result
        """Does one call on fakes."""
        if is_counter(func, args):
            return args[0]
        if reads_counter(func):
            return one_of(func)
        if sets_grad_mode(func) or is_checkpoints(func):
            return func(*args, **(kwargs or {}))
        if self._depth:
            return self._done(func, args, kwargs or {})
        return self._numbered(func, lambda: self._done(func, args, kwargs or {}))

    def whole(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401 - any result
        """One call, inside which nothing has a number."""

        def inside() -> Any:  # noqa: ANN401
            self._use(tree_leaves((args, kwargs)))
            given, named = tree_map(self._faked, (tuple(args), dict(kwargs)))
            self._depth += 1
            try:
                with seen_again(self):
                    result = func(*given, **named)
            finally:
                self._depth -= 1
            # What has come out may be another object, or need a gradient now.
            return tree_map(self._adopted, result)

        # What is done here is not to be seen as the forward's.
        with unseen(self):
            if self._depth:
                return inside()
            return self._numbered(getattr(func, "__func__", func), inside)

    def _numbered(self, func: Callable[..., Any], do: Callable[[], Any]) -> Any:  # noqa: ANN401
        # Where only results are wanted, the cuts are known.
        region = 0 if self._memo is not None else self._region()
        number, call = len(self.record.calls), Call(func, region=region)
        self.record.calls.append(call)
        before = self.counter.total if self.counter else 0
        try:
            result = do()
        except BaseException as exc:
            call.result = exc if isinstance(exc, Exception) else None
            raise
        call.operations = self.counter.total - before if self.counter else 0
        for place, leaf in enumerate(tree_leaves(result)):
            if isinstance(leaf, Tensor) and id(leaf) not in self._state:
                self._name((number, place), leaf)
        # Holders are copied: the user's code may change a list.
        call.result = tree_map(_same, result)
        return result

    def _name(self, key: Key, tensor: Tensor) -> None:
        if id(tensor) in self._keys or id(tensor) in self._constants:
            return
        self._kept.append(tensor)  # an id is its own while it lives
        if id(tensor) in self._remembered:
            self._keys[id(tensor)] = key
            self.record.looks[key] = tensor
        elif id(tensor) in self._fakes or id(tensor) in self._drawn:
            self._keys[id(tensor)] = key
            self.record.looks[key] = tensor
            self.record.memory[key] = self._memory(tensor)
        else:
            self._constants[id(tensor)] = key

    def _use(self, leaves: Sequence[Any]) -> None:
        number = len(self.record.calls) - 1
        for leaf in leaves:
            if id(leaf) in self._keys:
                self.record.last_use[self._keys[id(leaf)]] = number
            elif id(leaf) in self._state:
                self.record.state_uses.setdefault(id(leaf), []).append(number)

    def _done(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        leaves = tree_leaves((args, kwargs))
        if not self._depth:
            self.record.calls[-1].plain = [v for v in leaves if isinstance(v, _NUMBERS)]
        if not describes(func):
            self._use(leaves)
        if not any(self._is_numberless(leaf) for leaf in leaves):
            return self._for_real(func, leaves, args, kwargs)
        if name_of(func) == "grad_fn":
            # What an autograd function has made knows it itself, all else its fake.
            node = func(*args) or self._thought(func, args, kwargs)
            return node and GhostNode(node)
        if reads(func):
            line = users_line()
            number = len(self.record.calls) - 1
            if number in self._known and not self._depth:
                return self._read(line, self._known[number])
            if line in self._said and not self._depth:
                return self._read(line, self._said[line])
            raise Unforeseen(f"reads the numbers of a tensor at {line}")
        if self._memo is None or self._depth:
            return self._thought(func, args, kwargs)
        key = key_of(func, args, kwargs, self._is_numberless, self.device)
        known = None if key is None else self._memo.get(key)
        if known is not None:
            return known.built(leaves, self._remember)
        result = self._thought(func, args, kwargs)
        if key is not None:
            self._memo.put(key, result, leaves)
        return result

    def _thought(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401
        """What a call on fakes gives."""
        given: tuple[Any, Any] = tree_map(self._faked, (tuple(args), dict(kwargs)))
        # An inference tensor counts no versions, and no gradient would miss what it was.
        fakes = [t for t in tree_leaves(given) if isinstance(t, FakeTensor)]
        before = [(t, t._version) for t in fakes if not t.is_inference()]
        try:
            result = func(*given[0], **given[1])
        except (DataDependentOutputException, DynamicOutputShapeException) as exc:
            raise Unforeseen(f"needs the numbers of a tensor at {users_line()}") from exc
        except Exception:
            result = self._by_zeros(func, given)
        for tensor, version in before:
            if tensor._version != version:
                self._written(tensor)
        if overwrites(func, kwargs):
            self._promote(args[0] if args else None, kwargs.get("out"))
        return tree_map(self._back, result)

    def _is_numberless(self, value: object) -> bool:
        key = id(value)
        is_known = key in self._fakes or key in self._state or key in self._remembered
        # A ghost that is not known is one that an earlier forward has left in an attribute.
        return is_known or isinstance(value, (FakeTensor, Ghost))

    def _for_real(
        self,
        func: Callable[..., Any],
        leaves: Sequence[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401
        is_drawn = draws(func) or any(id(leaf) in self._drawn for leaf in leaves)
        result = func(*args, **kwargs)
        if reads(func) and not self._depth:
            self._read(users_line(), result)
        if draws(func):
            self._settle_draw(func, result, args)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (leaf.is_meta or is_drawn):
                # Without numbers, as the model is: a fake, whatever it comes from.
                self._take(leaf) if leaf.is_meta else self._take_drawn(leaf)
        if overwrites(func, kwargs) and args and id(args[0]) in self._constants:
            self.record.rewritten.add(self._constants[id(args[0])])
        if is_drawn and overwrites(func, kwargs):
            for target in (args[0] if args else None, kwargs.get("out")):
                self._draw_into(target)
        return result

    def _read(self, line: str, value: object) -> object:
        """A number that a line of the user's code goes by."""
        self.record.read.add(len(self.record.calls) - 1)
        said = self.record.said
        # What one call there is given is no guess for another one, if they differ.
        if said.get(line, value) != value:
            self._ambiguous.add(line)
        said[line] = value
        if line in self._ambiguous:
            del said[line]
        return value

    def _settle_draw(self, func: Callable[..., Any], result: Any, args: Sequence[Any]) -> None:  # noqa: ANN401
        """The lowest or highest number in place of a random one: what is decided by it shows."""
        name, limits = getattr(func, "__name__", ""), (0.0, 1.0)
        if name == "uniform_":
            limits = (*args[1:3], *limits[len(args[1:3]) :])[:2]
        elif name not in ("rand", "rand_like", "bernoulli", "bernoulli_"):
            return
        if isinstance(result, Tensor) and not result.is_meta:
            is_whole = name.startswith("bernoulli")
            high = limits[1] if is_whole else limits[0] + (limits[1] - limits[0]) * 0.999999
            result.detach().fill_(high if self._is_high else limits[0])

    def _by_zeros(self, func: Callable[..., Any], given: tuple[Any, Any]) -> Any:  # noqa: ANN401
        """The call on zeros, for a function that knows no tensors without numbers."""

        def zeros(value: object) -> object:
            if not isinstance(value, FakeTensor):
                return value
            return torch.zeros(value.size(), dtype=value.dtype, device=value.device)

        args, kwargs = tree_map(zeros, given)
        result = func(*args, **kwargs)
        return tree_map(
            lambda v: fake_like(self._mode, v, self.device) if isinstance(v, Tensor) else v, result
        )

    # --- ghosts and fakes

    def _remember(self, look: Ghost) -> Tensor:
        """A ghost of a known look, which has no fake yet: maybe nothing is done with it."""
        ghost = Ghost.of(look)
        self._kept.append(ghost)
        self._remembered.add(id(ghost))
        return ghost

    def _ghost(self, fake: FakeTensor) -> Tensor:
        ghost = Ghost.of(fake)
        self._kept.append(ghost)
        self._pair(ghost, fake)
        return ghost

    def _pair(self, tensor: Tensor, fake: FakeTensor) -> None:
        self._kept.append(fake)  # also once the tensor has another one
        self._fakes[id(tensor)] = fake
        self._originals[id(fake)] = tensor

    def _take(self, tensor: Tensor) -> None:
        if id(tensor) not in self._fakes:
            self._kept.append(tensor)
            self._pair(tensor, fake_like(self._mode, tensor, self.device))

    def _take_drawn(self, tensor: Tensor) -> None:
        if id(tensor) not in self._drawn:
            self._kept.append(tensor)
            self._drawn.add(id(tensor))

    def _faked(self, value: Any) -> Any:  # noqa: ANN401 - any argument
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._remembered and id(value) not in self._fakes:
            # No leaf, as it comes of others: what would need a gradient may be overwritten then.
            made = fake_like(self._mode, value, self.device).clone()
            assert isinstance(made, FakeTensor)
            self._pair(value, made)
        is_look = value.is_meta or isinstance(value, Ghost)
        if id(value) not in self._fakes and (id(value) in self._state or is_look):
            if id(value) not in self._state:
                self._kept.append(value)
            self._pair(value, fake_like(self._mode, value, self.device))
        return self._fakes.get(id(value), value)

    def _back(self, value: Any) -> Any:  # noqa: ANN401 - any result
        if not isinstance(value, FakeTensor):
            return value
        known = self._originals.get(id(value))
        return self._ghost(value) if known is None else known

    def _adopted(self, value: Any) -> Any:  # noqa: ANN401 - any result
        if isinstance(value, FakeTensor):
            return self._back(value)
        if not isinstance(value, Ghost) or id(value) in self._keys:
            return value
        # As autograd has left it.
        self._kept.append(value)
        self._pair(value, fake_like(self._mode, value, self.device))
        return value

    def _memory(self, tensor: Tensor) -> int:
        return int(self._fakes.get(id(tensor), tensor).untyped_storage()._cdata)

    def _written(self, fake: FakeTensor) -> None:
        number = len(self.record.calls) - 1
        self.record.writes.append((number, int(fake.untyped_storage()._cdata)))
        if id(self._originals.get(id(fake))) in self._state:
            self.record.state_writes.add(id(self._originals[id(fake)]))

    def _draw_into(self, target: object) -> None:
        """What came of no input has been given random numbers: from now on it crosses, too."""
        key = self._constants.pop(id(target), None)
        if key is not None and isinstance(target, Tensor):
            self._take_drawn(target)
            self._cross(target, key)

    def _promote(self, *targets: object) -> None:
        """What came of no input has been given numbers that do: from now on it crosses, too."""
        for target in targets:
            key = self._constants.pop(id(target), None)
            if key is not None and isinstance(target, Tensor):
                self._pair(target, fake_like(self._mode, target, self.device))
                self._cross(target, key)

    def _cross(self, tensor: Tensor, key: Key) -> None:
        self._keys[id(tensor)] = key
        self.record.looks[key] = tensor
        self.record.memory[key] = self._memory(tensor)
        self.record.last_use[key] = len(self.record.calls) - 1


def _same(value: Any) -> Any:  # noqa: ANN401 - any value
    return value
