"""One stage of a model that is cut by replay."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.costs import StageCosts
from bundlerun.splits.replay.calls import line_of
from bundlerun.splits.replay.composite import composites_shown
from bundlerun.splits.replay.ghosts import Ghost, GhostUsed
from bundlerun.splits.replay.look import look, look_twice
from bundlerun.splits.replay.memo import Memo
from bundlerun.splits.replay.record import Key, Record, agreed
from bundlerun.splits.replay.replica import Switch, convert_stand_ins
from bundlerun.splits.replay.script import Acting, Finished, Route, Script
from bundlerun.splits.stage import overwritable

_MOST_KEPT = 64
"""Scripts, each for inputs of other sizes."""
_PLAIN = (bool, int, float, str, type(None))
Kind = tuple[object, ...]
"""Modes, device and precision that a forward is done in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """Where a model is cut.

    cuts: names of modules, in order.
    parts: those of the stage, by number.
    routes: of the kinds of forwards, and the forms of their inputs, that are known.
    model_name: for messages.
    """

    cuts: Sequence[str]
    parts: Sequence[int]
    routes: Mapping[tuple[Kind, str], Route]
    model_name: str


def kind_of(training: bool, device: torch.device) -> Kind:
    """The kind of a forward that would be done now."""
    return (
        training,
        torch.is_grad_enabled(),
        device.type,
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
    )


class ReplayStage(nn.Module):
    """A consecutive part of a model, or several; runs the model's own forward.

    The first takes what the model takes. Any other takes the tensors that cross the cut before it,
    and a text about the model's inputs. All but the last return a tuple of the like for the next.

    Args:
        replica: of the model, with the state of this stage.
        switch: of the replica.
        cutting: where it is cut.
        used: parameters of each part of the stage.
        costs: of the stage.
    """

    costs: StageCosts | None
    _switch: Switch
    _cutting: Cutting
    _used: Sequence[Sequence[Parameter]]
    _routes: dict[tuple[Kind, str], Route]
    _scripts: dict[tuple[Kind, int, str], Script]
    _texts: dict[object, str]
    _memos: dict[Kind, Memo]
    _acting: Acting | None

    def __init__(
        self,
        replica: nn.Module,
        switch: Switch,
        cutting: Cutting,
        used: Sequence[Sequence[Parameter]],
        costs: StageCosts | None,
    ) -> None:
        super().__init__()
        # Under the names of the model: the same dicts, so that what is replaced is so for both.
        for holder in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[holder] = vars(replica)[holder]
        # Not as a submodule, which would add to the names.
        vars(self)["replica"] = replica
        self.training = replica.training
        # A module of the model may have one of these names.
        vars(self).update(
            _switch=switch,
            _cutting=cutting,
            _used=used,
            costs=costs,
            _routes=dict(cutting.routes),
            _scripts={},
            _texts={},
            _memos={},
            _acting=None,
        )
        self._watch_entries()

    def _watch_entries(self) -> None:
        replica: nn.Module = vars(self)["replica"]
        parts = self._cutting.parts
        for index in sorted({p - 1 for p in parts if p} | set(parts)):
            if index < len(self._cutting.cuts):
                module = replica.get_submodule(self._cutting.cuts[index])
                # Before the user's own: these belong to the module.
                module.register_forward_pre_hook(self._entered(index + 1), prepend=True)

    def _entered(self, part: int) -> Callable[[nn.Module, object], None]:
        def enter(module: nn.Module, args: object) -> None:
            # Recomputation in a backward enters modules, too: then nobody is acting.
            if self._acting is not None:
                self._acting.enter(part)

        return enter

    def chunk_modules(self, chunk: int) -> Iterable[nn.Module | Parameter]:
        """The parameters that one chunk uses."""
        return self._used[chunk]

    def train(self, mode: bool = True) -> Self:
        """Goes into a mode as the model itself does."""
        self.training = mode
        vars(self)["replica"].train(mode)
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401 - as torch has it
        """As torch's."""
        given = OrderedDict(state_dict)
        # Without versions, norms of other stages would take it for an old one that lacks counters.
        given._metadata = getattr(self.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
        return super().load_state_dict(given, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        convert_stand_ins(vars(self)["replica"], fn)
        self._scripts.clear()
        self._memos.clear()
        return self

    def forward(self, *inputs: Any, chunk: int = 0) -> Any:  # noqa: ANN401 - as the model's
        """The outputs of one chunk, see the class.

        Raises:
            ConfigError: the forward does something else than when the stages were made.
        """
        part = self._cutting.parts[chunk]
        tensors, text = (inputs[:-1], inputs[-1]) if part else ((), self._text(inputs))
        device = self._device(inputs)
        script = self._script(part, device, text)
        received: dict[Key, Tensor] = dict(
            zip(script.receives, map(overwritable, tensors), strict=True)  # type: ignore[arg-type]
        )
        arguments = _inputs_of(text, received, device) if part else inputs
        acting = Acting(script, part, received, self._cutting.model_name)
        for place, leaf in enumerate(_tensors(arguments)):
            acting.got[-1, place] = leaf
        before, grad = self._acting, torch.is_grad_enabled()
        vars(self)["_acting"] = acting
        try:
            result = self._run(acting, arguments)
        except Finished:
            # It has been left on the way: who calls is not to find a mode that would have ended.
            torch.set_grad_enabled(grad)
            return (*acting.sent(), text)
        finally:
            vars(self)["_acting"] = before
        if script.end is not None:
            raise ConfigError(
                f"the forward of {self._cutting.model_name} has ended before the cut "
                f"{self._cutting.cuts[part]!r}; cut elsewhere"
            )
        return result

    def _run(self, acting: Acting, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        with self._switch.on(), composites_shown(), _On(acting):
            try:
                return vars(self)["replica"](*arguments)
            except GhostUsed as exc:
                raise ConfigError(
                    f"the forward of {self._cutting.model_name} computes with what another stage "
                    f"has: it has kept a tensor of an earlier call, and uses it at "
                    f"{line_of(exc)} ({exc}); give such a tensor to the model as an input, cut "
                    "elsewhere, or use --shape 1"
                ) from exc

    # --- what is known of a kind of forward

    def _script(self, part: int, device: torch.device, text: str) -> Script:
        kind = kind_of(self.training, device)
        known = self._scripts.get((kind, part, text))
        if known is None:
            known = self._made(kind, part, device, text)
            if len(self._scripts) >= _MOST_KEPT:
                del self._scripts[next(iter(self._scripts))]
            self._scripts[kind, part, text] = known
        return known

    def _made(self, kind: Kind, part: int, device: torch.device, text: str) -> Script:
        replica: nn.Module = vars(self)["replica"]
        inputs = _inputs_of(text, {}, device)
        with self._switch.on():
            key = kind, form_in(text)
            if key not in self._routes:
                self._routes[key] = self._route(inputs, device)
            route = self._routes[key]
            if not part:
                return Script.of(route, 0, Record())
            until = self._cutting.cuts[part - 1]
            memo = self._memos.setdefault(kind, Memo())
            record = look(replica, inputs, device, until=until, known=route.known, memo=memo)
        # Other sizes, such as an epoch's last micro-batch: the same calls, or it is refused.
        start = route.starts[part - 1]
        if [call.func for call in record.calls] != list(route.funcs[:start]):
            raise ConfigError(
                f"the forward of {self._cutting.model_name} makes other calls before the cut "
                f"{self._cutting.cuts[part - 1]!r} for inputs of another size; use --cutter "
                "graph, or --shape 1"
            )
        return Script.of(route, part, record)

    def _route(self, inputs: Sequence[Any], device: torch.device) -> Route:
        """Of another kind of forward, or of inputs in another form, such as of more images."""
        replica: nn.Module = vars(self)["replica"]
        cuts, name = self._cutting.cuts, self._cutting.model_name
        said = agreed(route.said for route in self._routes.values())
        record, why = look_twice(replica, inputs, device, said=said)
        lost = next((cut for cut in cuts if cut not in record.entries), "")
        if why or lost:
            why = why or f"{record.failure or 'ends'} before the cut {lost!r}"
            raise ConfigError(
                f"the forward of {name} {why}, for inputs in another form than those by which it "
                "was cut; let micro-batches be alike, or use --shape 1"
            )
        return Route.of(record, cuts)

    def _device(self, inputs: Sequence[Any]) -> torch.device:
        # Not by way of all modules, which takes long in each forward.
        for tensor in chain(*self._used, _tensors(inputs), self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _text(self, inputs: Sequence[Any]) -> str:
        flat, form = pytree.tree_flatten(tuple(inputs))
        key = (form, tuple(_look(value) for value in flat))
        try:
            known = self._texts.get(key)
        except TypeError:
            known = None
        if known is None:
            known = described(inputs)
            if len(self._texts) >= _MOST_KEPT:
                self._texts.clear()
            self._texts[key] = known
        return known


class _On:
    """A mode for the time of a forward; it may have gone by itself."""

    def __init__(self, acting: Acting) -> None:
        self._acting = acting

    def __enter__(self) -> None:
        self._acting.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *args: object) -> None:
        if not self._acting.is_off:
            self._acting.__exit__(*args)  # type: ignore[no-untyped-call]


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _look(value: object) -> object:
    return (value.shape, value.dtype, value.requires_grad) if isinstance(value, Tensor) else value


def form_in(text: str) -> str:
    """How the inputs that a text describes are nested."""
    return str(json.loads(text)[0])


def described(inputs: Sequence[Any]) -> str:
    """Shapes and types of a model's inputs as a text.

    Raises:
        ConfigError: one of them is neither a tensor nor a plain value.
    """
    flat, form = pytree.tree_flatten(tuple(inputs))
    for value in flat:
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise ConfigError(
                f"the model is called with a {type(value).__name__}, of which other stages cannot "
                "be told; give it tensors and plain values, or use --cutter graph"
            )
    leaves = [
        [list(v.shape), str(v.dtype).removeprefix("torch."), v.requires_grad]
        if isinstance(v, Tensor)
        else v
        for v in flat
    ]
    return json.dumps([pytree.treespec_dumps(form), leaves])


def _inputs_of(text: str, received: Mapping[Key, Tensor], device: torch.device) -> tuple[Any, ...]:
    """The inputs that a text describes: those received, and others without numbers."""
    form, leaves = json.loads(text)
    flat: list[Any] = []
    place = 0
    for leaf in leaves:
        if not isinstance(leaf, list):
            flat.append(leaf)
            continue
        shape, dtype, requires_grad = leaf
        known = received.get((-1, place))
        if known is None:
            known = Ghost.made(shape, getattr(torch, dtype), device, requires_grad)
        flat.append(known)
        place += 1
    made: tuple[Any, ...] = pytree.tree_unflatten(flat, pytree.treespec_loads(form))
    return made
