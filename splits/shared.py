"""Parameters that several stages use, such as an embedding that is tied to the head.

    the model           a.weight = z.weight    b.weight
    stage 0             a.weight = z.weight                 owns it: clips with it, saves it
    stage 1                                    b.weight
    stage 2             a.weight = z.weight                 has a copy, under all its names

Each stage that uses such a parameter has it whole, and their gradients are summed
(`bundlerun.workers.sync`). What a cutter has to do is to give its stages the model's own parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn import Parameter

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.stage import attach
from bundlerun.splits.state import named_state, tensors_of

_MARK = "_shared_parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """One parameter that several stages have.

    Args:
        names: all that the model has for it, in the model's order.
        stages: that have it, ascending.
    """

    names: tuple[str, ...]
    stages: tuple[int, ...]

    @property
    def owner(self) -> int:
        """The stage that has it for the whole model wherever it is to count once."""
        return self.stages[0]


def settle_shared(stages: Sequence[nn.Module], names: Mapping[int, Sequence[str]]) -> None:
    """Lets each stage know what it shares, and have it under all the names of the model.

    Args:
        stages: all of the model's, with its own parameters and buffers.
        names: of the model's state, in its order, by the tensor's identity; without buffers of
            which stages may have copies that nobody keeps equal.

    Raises:
        ConfigError: two stages hold one buffer, which would have to be kept equal; or two
            parameters, each in another stage, lie in the same memory.
    """
    _check_memory(stages, names)
    users: dict[int, list[int]] = {}
    for index, stage in enumerate(stages):
        for key in dict.fromkeys(id(tensor) for tensor in tensors_of(stage)):
            users.setdefault(key, []).append(index)
    # In the model's order, in which all ranks see them.
    shared = {key: users[key] for key in names if len(users.get(key, ())) > 1}
    parameters = {id(p): p for stage in stages for p in stage.parameters()}
    for key, used in shared.items():
        if key not in parameters:
            raise ConfigError(
                f"{' = '.join(names[key])} is a buffer that stages {used[0]} and {used[1]} use; "
                "cut where all its uses are on one side"
            )
    for index, stage in enumerate(stages):
        own = {key: used for key, used in shared.items() if index in used}
        known = {name for name, _ in named_state(stage)}
        for key in own:
            # So a checkpoint, which has one copy for all, fits any cut and the model itself.
            for name in names[key]:
                if name not in known:
                    attach(stage, name, parameters[key])
        found = [Shared(names=tuple(names[k]), stages=tuple(used)) for k, used in own.items()]
        setattr(stage, _MARK, tuple(found))


def _check_memory(stages: Sequence[nn.Module], names: Mapping[int, Sequence[str]]) -> None:
    """Raises ConfigError where a step of one stage would have to move another one's parameter.

    `head.weight.data = embedding.weight.data` makes two parameters of the same numbers. In one
    process what one's step does to them the other one sees, but not in another.
    """
    lying: dict[int, list[tuple[int, int, int, Parameter]]] = {}
    for index, stage in enumerate(stages):
        for parameter in stage.parameters():
            begin = int(parameter.storage_offset()) * parameter.element_size()
            end = begin + int(parameter.nbytes)
            others = lying.setdefault(parameter.untyped_storage()._cdata, [])
            for first, last, elsewhere, other in others:
                if elsewhere != index and other is not parameter and begin < last and first < end:
                    a, b = (names.get(id(p), ["a parameter"])[0] for p in (other, parameter))
                    raise ConfigError(
                        f"{a} of stage {elsewhere} and {b} of stage {index} are two parameters in "
                        "the same memory, which two stages cannot share; make them one "
                        f"({b} = {a}, not by .data), or cut where both are on one side"
                    )
            others.append((begin, end, index, parameter))


def shared_of(stage: nn.Module) -> tuple[Shared, ...]:
    """What a stage shares with others, in the model's order."""
    found: tuple[Shared, ...] = getattr(stage, _MARK, ())
    return found


def shared_parameters(stage: nn.Module) -> dict[Shared, Parameter]:
    """The same with the stage's own copies, wherever they are by now."""
    return {shared: stage.get_parameter(shared.names[0]) for shared in shared_of(stage)}


def kept_elsewhere(stage: nn.Module, number: int) -> set[str]:
    """The names of what a stage shares and another one owns; `number`: of the stage."""
    return {name for s in shared_of(stage) if s.owner != number for name in s.names}


def counted_elsewhere(stage: nn.Module, number: int) -> set[Parameter]:
    """A stage's copies of what another one owns."""
    return {p for shared, p in shared_parameters(stage).items() if shared.owner != number}


def model_parameters(stage: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Yields the parameters of a stage, each once, with the name that the whole model says.

    A stage may come upon another name of a shared one first.
    """
    first = {parameter: shared.names[0] for shared, parameter in shared_parameters(stage).items()}
    for name, parameter in stage.named_parameters():
        yield first.get(parameter, name), parameter
