"""A model as a graph of operations, one graph per mode."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import ParameterProxy

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.alias import IN_PLACE_OPERATORS
from bundlerun.splits.modes import modes_kept
from bundlerun.splits.random_state import kept_random_state, seed_random
from bundlerun.splits.tracing.beside import (
    MODES,
    Unkept,
    attributes,
    changes_buffer,
    difference,
    keeps_results,
    moved,
    no_autograd_function,
    random_state,
    restore,
    settings,
)
from bundlerun.splits.tracing.region import REGION, Autocast, Region
from bundlerun.splits.tracing.twice import first_difference

_CONTAINERS: tuple[type, ...] = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DICTS = (dict, OrderedDict, defaultdict)
_CONSTANT = "_tensor_constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeGraphs:
    """What a model computes in training and in evaluation.

    fx bakes `self.training` into the graph it records, so each mode has its own; both call the
    same submodules.
    """

    train: fx.Graph
    eval: fx.Graph
    constants: dict[str, Tensor]
    """Tensors that the forward makes from nothing, by the name the graphs use."""


class _Untraceable(Exception):
    """A module, not the model itself, of which no graph can be made that does the same."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(type(module).__name__)
        self.module = module


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is; torch.fx would make a new tensor of it."""


def _in_place(operation: Callable[..., Any], name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:  # noqa: ANN401 - any operand
        # The name, which a cut may have, is that of the same operation otherwise.
        return self.tracer.create_proxy("call_function", operation, (self, other), {}, name)

    return record


for _name, _operation in IN_PLACE_OPERATORS.items():
    setattr(_Proxy, f"__i{_name}__", _in_place(_operation, _name))


class _BufferProxy(ParameterProxy):
    """Its shape is known while tracing, as that of a parameter is."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, name: str, buffer: Tensor) -> None:
        fx.Proxy.__init__(self, node, tracer)
        self.param = buffer  # type: ignore[assignment]
        self.name = name


class ModuleTracer(fx.Tracer):
    """Records a model down to torch's own modules, and whole modules where it cannot look inside.

    Args:
        opaque: classes to record as one call.
        num_inputs: arguments that the forward is called with; None: those without a default.
        names_draws: whether to look in each module for random numbers that it draws while tracing,
            and to raise Unkept in the first that does.
    """

    def __init__(
        self, opaque: frozenset[type], num_inputs: int | None = None, *, names_draws: bool = False
    ) -> None:
        super().__init__(autowrap_modules=(math,), param_shapes_constant=True)
        self._opaque = opaque
        self._num_inputs = num_inputs
        self._names_draws = names_draws
        self.has_drawn = False
        self._outer_grad = torch.is_grad_enabled()
        self._outer = settings()
        self._autocasts: list[Autocast] = []
        self._buffers: dict[int, str] = {}

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]  # noqa: ANN401
        """The graph of `root`.

        Raises:
            Unkept: its own forward does what no graph keeps.
        """
        self._buffers = {id(buffer): name for name, buffer in root.named_buffers()}
        # A forward that raises half-way may leave gradients off: put back for the next try.
        grad_kept = torch.set_grad_enabled(self._outer_grad)
        with grad_kept, no_autograd_function(), _autocasts_told(self._autocasts):
            before = random_state(root)
            graph = super().trace(root, concrete_args)
            self._check_settings()
            self._check_draws(root, before)
            return graph

    def create_args_for_root(
        self, root_fn: object, is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The model's forward and its inputs; the other arguments have their defaults."""
        assert isinstance(self.root, nn.Module)
        names = input_names(self.root, self._num_inputs)
        return self.root.forward, [self.create_proxy("placeholder", n, (), {}) for n in names]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a node while tracing."""
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401 - as fx has it
        """A node that knows the contexts around it."""
        # A mode of torch, as of `with torch.device("meta")`, is off while it handles an operation.
        changed = difference(self._outer, settings(least_modes=self._outer[MODES]))
        if changed:
            raise Unkept(f"sets {changed}")
        node = super().create_node(*args, **kwargs)
        grad = torch.is_grad_enabled()
        region = Region(
            grad=None if grad == self._outer_grad else grad,
            is_inference=torch.is_inference_mode_enabled(),
            autocasts=tuple(self._autocasts),
        )
        if region != _NO_REGION:
            node.meta[REGION] = region
        return node

    def create_arg(self, a: Any) -> Any:  # noqa: ANN401 - as fx has it
        """What a graph has for a value that is given to an operation, or returned.

        Raises:
            Unkept: it is of a class that a graph does not keep.
        """
        # torch.fx makes a plain dict of it, which has other attributes and keys.
        if isinstance(a, dict) and type(a) not in _DICTS:
            raise Unkept(f"makes a {type(a).__name__}, of which a graph makes a dict")
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        """Whether `m` is one operation of the graph."""
        if type(m) in self._opaque or has_hooks(m):
            return True
        # By any class above it: a user's subclass of nn.Conv2d is one operation, too.
        if any(_is_torch_operation(cls) for cls in type(m).__mro__):
            return not isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        # StochasticDepth, FrozenBatchNorm2d: they act by mode, or keep statistics.
        return type(m).__module__.startswith("torchvision.ops.") and not any(m.children())

    def getattr(
        self,
        attr: str,
        attr_val: Any,  # noqa: ANN401 - any attribute of a module
        parameter_proxy_cache: dict[str, fx.Proxy],
    ) -> Any:  # noqa: ANN401
        """A proxy for parameters and buffers, else the attribute itself."""
        # fx hands a buffer out as it is, and would compute once, here, what depends on it.
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            name = self._buffers.get(id(attr_val))
            if name is not None:
                if name not in parameter_proxy_cache:
                    parameter_proxy_cache[name] = self._buffer_proxy(name, attr_val)
                return parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _buffer_proxy(self, name: str, buffer: Tensor) -> fx.Proxy:
        return self.create_proxy(
            "get_attr",
            name,
            (),
            {},
            proxy_factory_fn=lambda node: _BufferProxy(self, node, name, buffer),
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - what the forward returns
        """The proxy of the module's output."""
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        try:
            # Only to find the culprit: it reads every generator for each module.
            before = random_state(m) if self._names_draws else {}
            result = super().call_module(m, forward, args, kwargs)
            self._check_settings()
            if self._names_draws:
                self._check_draws(m, before)
            return result
        except _Untraceable:
            raise
        except Exception as exc:
            # A proxy can make a user's code raise anything: control flow gives TraceError,
            # torch.arange(proxy) TypeError.
            raise _Untraceable(m) from exc

    def _check_settings(self) -> None:
        changed = difference(self._outer, settings())
        if changed:
            raise Unkept(f"sets {changed}")

    def _check_draws(self, module: nn.Module, before: Mapping[str, object]) -> None:
        drawn = difference(before, random_state(module))
        self.has_drawn = drawn is not None
        if drawn and self._names_draws:
            raise Unkept(f"draws random numbers ({drawn}), which would be drawn only once")


_NO_REGION = Region()


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` does more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def input_names(model: nn.Module, count: int | None) -> list[str]:
    """The names of a model's inputs.

    Args:
        model: has a forward.
        count: arguments that it is called with; None: one for each parameter without a default.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    in_order = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if count is None:
        count = max(1, sum(p.default is p.empty for p in in_order))
    named = [p.name for p in in_order[:count]]
    return [*named, *(f"input_{i}" for i in range(len(named), count))]


@contextlib.contextmanager
def _autocasts_told(found: list[Autocast]) -> Iterator[None]:
    """Keeps the list of those `torch.autocast` that are entered."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def told_enter(self: torch.autocast) -> object:
        result = enter(self)  # type: ignore[no-untyped-call]
        found.append(
            Autocast(
                device=self.device,
                dtype=torch.get_autocast_dtype(self.device),
                is_enabled=torch.is_autocast_enabled(self.device),
                is_cached=torch.is_autocast_cache_enabled(),
            )
        )
        return result

    def told_leave(self: torch.autocast, *args: Any) -> object:  # noqa: ANN401 - as torch has it
        found.pop()
        return leave(self, *args)

    torch.autocast.__enter__, torch.autocast.__exit__ = told_enter, told_leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]


def _is_torch_operation(cls: type) -> bool:
    return cls.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and cls not in _CONTAINERS


def trace_modes(model: nn.Module, num_inputs: int | None = None) -> ModeGraphs:
    """The graphs of `model` in both modes; the model is left as it was.

    Args:
        num_inputs: arguments that its forward is called with; None: those without a default.

    Raises:
        ConfigError: its own forward depends on values that only exist when it runs, or does
            something that the stages would not do.
    """
    # Stages have other modules at their root: nobody would call these.
    if has_hooks(model):
        raise _refused(model, "has hooks on the model itself; give them to a submodule")
    before = attributes(model)
    try:
        with modes_kept(model):
            model.train()
            train = _trace(model, num_inputs)
            model.eval()
            with torch.no_grad():  # as it is evaluated
                eval_ = _trace(model, num_inputs)
        made = {name: value for name, value in vars(model).items() if name.startswith(_CONSTANT)}
    finally:
        restore(before)
    return ModeGraphs(train=train, eval=eval_, constants=made)


def _trace(model: nn.Module, num_inputs: int | None) -> fx.Graph:
    opaque: frozenset[type] = frozenset()
    before = attributes(model)
    while True:
        try:
            return _trace_twice(model, opaque, num_inputs)
        except _Untraceable as exc:
            if type(exc.module) in opaque:
                name = type(exc.module).__name__  # it would be tried for ever
                raise _refused(model, f"uses a {name}, which cannot be recorded whole") from exc
            # Again, with this class as one operation; each round adds a class, so it ends.
            opaque |= {type(exc.module)}
            restore(before)
        except Unkept as exc:
            raise _refused(model, f"{exc}; move that part into a submodule") from exc
        except Exception as exc:
            raise ConfigError(
                f"cannot cut {type(model).__name__}: its own forward does not trace with torch.fx "
                f"({str(exc).splitlines()[0] if str(exc) else type(exc).__name__}); move the part "
                "that depends on values into a submodule, or return the list of stages from build"
            ) from exc


def _refused(model: nn.Module, what: str) -> ConfigError:
    return ConfigError(
        f"cannot cut {type(model).__name__}: its own forward {what}, or return the list of stages "
        "from build"
    )


def _trace_twice(model: nn.Module, opaque: frozenset[type], num_inputs: int | None) -> fx.Graph:
    """The graph of a model; a second one, made after other random numbers, is equal to it."""
    states = [attributes(model)]
    graphs: list[fx.Graph] = []
    # Twice, with other random numbers: what differs was decided by a draw or by a call before.
    for seed in _SEEDS:
        with kept_random_state():
            seed_random(seed)
            tracer = ModuleTracer(opaque, num_inputs)
            graphs.append(tracer.trace(model))
            if tracer.has_drawn:
                ModuleTracer(opaque, num_inputs, names_draws=True).trace(model)
        states.append(attributes(model))
        if found := keeps_results(model):
            raise _beside(model, found[0], f"keeps a result in {found[1]!r}, for use outside")
        if found := changes_buffer(states[0]):
            raise _beside(model, found[0], f"replaces the buffer {found[1]!r}")
    if found := moved(*states):
        raise _beside(model, found[0], f"changes {found[1]!r} in each call")
    graph, again = graphs
    node = first_difference(graph, again, model)
    for name in set(states[2][model]) - set(states[1][model]):
        delattr(model, name)  # constants of the second
    if node is not None:
        path = next(reversed(node.meta.get("nn_module_stack", {"": ("", None)}).values()))[0]
        what = f"does not do the same in each call: {node.name!r} is the first to differ"
        raise _beside(model, model.get_submodule(path), what)
    return graph


_SEEDS = (20, 21)


def _beside(model: nn.Module, module: nn.Module, what: str) -> Exception:
    return Unkept(what) if module is model else _Untraceable(module)
