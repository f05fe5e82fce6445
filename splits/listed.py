"""A model that its author has cut: a list of modules, one per stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from launcher.errors import ConfigError
from splits.graph import check_apart
from splits.state import names_by_id


class ListedStage(nn.Module):
    """Some neighbours of a list of modules, under the names of `nn.Sequential` of the whole list.

    Each takes what the one before it returns, a tuple as several arguments.

    Args:
        modules: the neighbours, by their place in the list.
        is_last: whether the list ends with them; the others' output is always a tuple.
    """

    def __init__(self, modules: dict[int, nn.Module], *, is_last: bool) -> None:
        super().__init__()
        for index, module in modules.items():
            self.add_module(str(index), module)
        self._is_last = is_last

    def forward(self, *inputs: Tensor) -> object:
        """What the last of the modules returns."""
        result: object = inputs
        for module in self.children():
            result = module(*_as_tuple(result))
        return result if self._is_last else _as_tuple(result)


def _as_tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def joined_stages(
    modules: Sequence[nn.Module], *, cut: Sequence[str], num_stages: int, model_name: str
) -> list[nn.Module]:
    """One stage per module of the list, or one that runs them all.

    Raises:
        ConfigError: the list has another length, cuts are given, or two stages share parameters.
    """
    name = model_name or "the model"
    if cut and cut != (str(len(modules)),) and num_stages > 1:
        raise ConfigError(
            f"--cut {','.join(cut)} is given and {name} is already cut into {len(modules)} "
            "stages; leave --cut out"
        )
    if num_stages == 1:
        return [ListedStage(dict(enumerate(modules)), is_last=True)]
    if num_stages != len(modules):
        raise ConfigError(
            f"{name} is cut into {len(modules)} stages and the shape has {num_stages}; use a "
            f"shape of {len(modules)} numbers, or 1"
        )
    last = num_stages - 1
    stages = [ListedStage({i: m}, is_last=i == last) for i, m in enumerate(modules)]
    check_apart(stages, names_by_id(*stages))
    return list[nn.Module](stages)
