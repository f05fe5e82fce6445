"""A model as a graph of operations, one graph per mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import ParameterProxy

from launcher.errors import ConfigError
from splits.modes import modes_kept

_CONTAINERS: tuple[type, ...] = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
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
    def __init__(self, module: nn.Module) -> None:
        super().__init__(type(module).__name__)
        self.module = module


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
    """

    def __init__(self, opaque: frozenset[type]) -> None:
        super().__init__(autowrap_modules=(math,), param_shapes_constant=True)
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        """True where `m` is one operation of the graph."""
        if type(m) in self._opaque:
            return True
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
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    if name not in parameter_proxy_cache:
                        parameter_proxy_cache[name] = self._buffer_proxy(name, buffer)
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
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Untraceable:
            raise
        except Exception as exc:
            # A proxy can make a user's code raise anything: control flow gives TraceError,
            # torch.arange(proxy) TypeError.
            raise _Untraceable(m) from exc


def _is_torch_operation(cls: type) -> bool:
    return cls.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and cls not in _CONTAINERS


def trace_modes(model: nn.Module) -> ModeGraphs:
    """The graphs of `model` in both modes; the model is left as it was.

    Raises:
        ConfigError: its forward depends on values that only exist when it runs.
    """
    before = set(vars(model))
    try:
        with modes_kept(model):
            model.train()
            train = _trace(model)
            model.eval()
            eval_ = _trace(model)
        made = [name for name in vars(model) if name not in before and name.startswith(_CONSTANT)]
        constants = {name: getattr(model, name) for name in made}
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)
    return ModeGraphs(train=train, eval=eval_, constants=constants)


def _trace(model: nn.Module) -> fx.Graph:
    opaque: frozenset[type] = frozenset()
    while True:
        try:
            return ModuleTracer(opaque).trace(model)
        except _Untraceable as exc:
            opaque |= {type(exc.module)}
        except Exception as exc:
            raise ConfigError(
                f"cannot cut {type(model).__name__}: its own forward does not trace with torch.fx "
                f"({str(exc).splitlines()[0] if str(exc) else type(exc).__name__}); move the part "
                "that depends on values into a submodule, or return the list of stages from build"
            ) from exc
