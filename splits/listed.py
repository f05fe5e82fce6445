"""A model that its author has cut: a list of modules, one per stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits.shared import settle_shared
from bundlerun.splits.stage import overwritable
from bundlerun.splits.state import names_by_id


class ListedStage(nn.Module):
    """Some of a list of modules, under the names of `nn.Sequential` of the whole list.

    Each takes what the one before it returns, a tuple as several arguments.

    Args:
        chunks: per chunk of the stage neighbours in the list, by their place in it.
        is_last: whether the list ends with the last of them; else the output is always a tuple.
    """

    def __init__(self, chunks: Sequence[dict[int, nn.Module]], *, is_last: bool) -> None:
        super().__init__()
        for chunk in chunks:
            for index, module in chunk.items():
                self.add_module(str(index), module)
        self._names = [[str(index) for index in chunk] for chunk in chunks]
        self._is_last = is_last

    def chunk_modules(self, chunk: int) -> list[nn.Module]:
        """The modules of one chunk."""
        return [self.get_submodule(name) for name in self._names[chunk]]

    def forward(self, *inputs: Tensor, chunk: int = 0) -> object:
        """What the last module of a chunk returns."""
        result: object = tuple(map(overwritable, inputs))
        for module in self.chunk_modules(chunk):
            result = module(*as_arguments(result))
        is_last = self._is_last and chunk == len(self._names) - 1
        return result if is_last else as_arguments(result)


def as_arguments(value: object) -> tuple[object, ...]:
    """What the module after is called with, of what one of the list returns."""
    return value if isinstance(value, tuple) else (value,)


def joined_stages(
    modules: Sequence[nn.Module],
    *,
    cut: Sequence[str],
    num_stages: int,
    model_name: str,
    chunks_per_stage: int = 1,
) -> list[nn.Module]:
    """One chunk of a stage per module of the list, or one stage that runs them all.

    Raises:
        ConfigError: the list has another length, cuts are given, or two stages share a buffer.
    """
    name = model_name or "the model"
    # A --cut that says what is so anyway does no harm.
    if cut and cut != (str(len(modules)),) and num_stages > 1:
        raise ConfigError(
            f"--cut {','.join(cut)} is given and {name} is already cut into {len(modules)} "
            "stages; leave --cut out"
        )
    # The reference: the same list on one device, under the same names.
    if num_stages == 1:
        return [ListedStage([dict(enumerate(modules))], is_last=True)]
    chunks = Chunks(num_stages, chunks_per_stage)
    if chunks.num_chunks != len(modules):
        if chunks.per_stage > 1:
            raise ConfigError(
                f"{name} is cut into {len(modules)} parts and {num_stages} stages of "
                f"{chunks.per_stage} chunks need {chunks.num_chunks}; use another --shape or "
                "--chunks"
            )
        raise ConfigError(
            f"{name} is cut into {len(modules)} stages and the shape has {num_stages}; use a "
            f"shape of {len(modules)} numbers, or 1"
        )
    stages = [
        ListedStage([{c: modules[c]} for c in chunks.on_stage(s)], is_last=s == num_stages - 1)
        for s in range(num_stages)
    ]
    settle_shared(stages, names_by_id(*stages))
    return list[nn.Module](stages)
