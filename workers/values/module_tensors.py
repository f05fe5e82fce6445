"""Where a module keeps its parameters and buffers; quick to look at, step after step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """One parameter or buffer: not the tensor, which may be replaced, but where it is.

    Args:
        name: as in `named_parameters` and `named_buffers`.
        owner: the dictionary of the module that has it.
        key: its name there.
        is_parameter: whether it is one; else a buffer.
        is_kept: whether it is in the state_dict.
    """

    name: str
    owner: dict[str, Tensor | None]
    key: str
    is_parameter: bool
    is_kept: bool

    @property
    def tensor(self) -> Tensor:
        """What is there now."""
        found = self.owner[self.key]
        assert found is not None, self.name
        return found


def tensor_places(module: nn.Module) -> list[TensorPlace]:
    """All parameters and buffers of `module`, each tensor once, in module order."""
    # Tied parameters are one tensor in several places: looked at once.
    known: set[int] = set()
    found = []
    for place in _all_places(module):
        if id(place.tensor) not in known:
            known.add(id(place.tensor))
            found.append(place)
    return found


def moved(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, on a device; what was one tensor in several places is one there, too.

    Source: `torch.nn.Module._apply` makes a new parameter for each place on a device of a kind that
    is not torch's own (privateuse1), as `torch._has_compatible_shallow_copy_type` says.
    """
    together: dict[int, list[TensorPlace]] = {}
    for place in _all_places(module):
        together.setdefault(id(place.tensor), []).append(place)
    module.to(device)
    for first, *others in together.values():
        for place in others:
            place.owner[place.key] = first.tensor
    return module


def copied_buffers(tensors: Sequence[Tensor], places: Sequence[TensorPlace]) -> list[Tensor]:
    """`tensors`, with copies in place of those that lie in the memory of a buffer."""
    # Nearly all that stages pass on needs a gradient, and no buffer does.
    if all(tensor.requires_grad for tensor in tensors):
        return list(tensors)
    memory = {_memory(place.tensor) for place in places if not place.is_parameter}
    return [t.clone() if not t.requires_grad and _memory(t) in memory else t for t in tensors]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _all_places(module: nn.Module) -> Iterator[TensorPlace]:
    for prefix, part in module.named_modules():
        for is_parameter, owner in ((True, part._parameters), (False, part._buffers)):
            for key, tensor in owner.items():
                if tensor is not None:
                    yield TensorPlace(
                        name=f"{prefix}.{key}" if prefix else key,
                        owner=owner,
                        key=key,
                        is_parameter=is_parameter,
                        is_kept=key not in part._non_persistent_buffers_set,
                    )


def limited_embeddings(stage: nn.Module) -> set[int]:
    """Embeddings that a forward scales down to their largest norm, by identity."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    limited = (m for m in stage.modules() if isinstance(m, kinds) and m.max_norm is not None)
    return {id(m.weight) for m in limited}


def may_be_written(place: TensorPlace, limited: set[int]) -> bool:
    """Of parameters that are trained there is no copy: that memory may not be there."""
    tensor = place.tensor
    return not place.is_parameter or not tensor.requires_grad or id(tensor) in limited
