"""What a model's own `train(mode)` sets, for stages that hold only some of its modules.

A model may keep its batch norms in evaluation, or freeze its first layers, whenever it is told to
train. Its stages are modules of ours: they take over what it has set in each mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from bundlerun.launcher.errors import ConfigError

_PLAIN = (bool, int, float, str, type(None))
Settings = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What holds in one mode, by the identity of module and parameter; valid while they live."""

    settings: Mapping[int, Settings]
    """Attributes of modules: `training`, and others that the mode changes."""
    requires_grad: Mapping[int, bool]

    def within(self, root: nn.Module) -> PartMode:
        """What of it is about the modules under `root`."""
        modules = [m for m in root.modules() if id(m) in self.settings]
        parameters = [p for p in root.parameters() if id(p) in self.requires_grad]
        return PartMode(
            settings=[(module, self.settings[id(module)]) for module in modules],
            requires_grad=[(p, self.requires_grad[id(p)]) for p in parameters],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMode:
    """What holds in one mode, for the modules of a stage."""

    settings: Sequence[tuple[nn.Module, Settings]]
    requires_grad: Sequence[tuple[nn.Parameter, bool]]

    def apply(self) -> None:
        """Sets it."""
        for module, settings in self.settings:
            for name, value in settings.items():
                setattr(module, name, value)
        for parameter, wanted in self.requires_grad:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)


Modes = Mapping[bool, Mode]


def read_modes(model: nn.Module) -> Modes | None:
    """What `train(True)` and `train(False)` set; None where the model has no `train` of its own.

    The model is left as it was.

    Raises:
        ConfigError: what they set is not the same each time.
    """
    if not any(_has_own_train(module) for module in model.modules()):
        return None
    built = [(p, p.requires_grad) for p in model.parameters()]
    # Once more from the opposite: this shows what `train` sets and what it only leaves alone.
    # Integers cannot require a gradient.
    opposite = [(p, not r and (p.is_floating_point() or p.is_complex())) for p, r in built]
    with modes_kept(model):
        first = [_look(model, mode, built) for mode in (True, False)]
        # A second time: what differs now is a counter, and not set by the mode.
        again = [_look(model, mode, opposite) for mode in (True, False)]
    train, eval_ = zip(first, again, strict=True)
    _check_equal(model, *train)
    _check_equal(model, *eval_)
    return {True: _of_mode(train, eval_), False: _of_mode(eval_, train)}


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Puts every `training` and `requires_grad` back in the end."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in vars(module)


def _look(model: nn.Module, mode: bool, before: Sequence[tuple[nn.Parameter, bool]]) -> Mode:
    for parameter, requires_grad in before:
        parameter.requires_grad_(requires_grad)
    model.train(mode)
    return Mode(
        settings={id(module): _settings(module) for module in model.modules()},
        requires_grad={id(parameter): parameter.requires_grad for parameter, _ in before},
    )


def _settings(module: nn.Module) -> Settings:
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    return {**plain, "training": module.training}


def _check_equal(model: nn.Module, one: Mode, other: Mode) -> None:
    for name, module in model.named_modules():
        if one.settings[id(module)]["training"] != other.settings[id(module)]["training"]:
            raise ConfigError(
                f"the train() of {type(model).__name__} sets {name or 'the model'!r} another way "
                "when it is called again, so its stages cannot do the same; let it depend on the "
                "mode only, or train the model without a cut"
            )


def _of_mode(mine: tuple[Mode, Mode], others: tuple[Mode, Mode]) -> Mode:
    """What a mode sets.

    Of the modules whether they train, and what is the same each time and another in the other mode
    (so no counter of the calls). Of the parameters what does not depend on how it was before.
    """
    settings: dict[int, Settings] = {}
    for key, values in mine[0].settings.items():
        other = others[0].settings[key]
        steady = {
            name
            for name, value in values.items()
            if mine[1].settings[key].get(name) == value
            and others[1].settings[key].get(name) == other.get(name) != value
        }
        settings[key] = {name: values[name] for name in steady | {"training"}}
    grads, again = (mode.requires_grad for mode in mine)
    return Mode(
        settings=settings,
        requires_grad={key: value for key, value in grads.items() if again[key] == value},
    )
