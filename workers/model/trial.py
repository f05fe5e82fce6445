"""One pass through a model, or through the stages made of it, of which nothing stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits.random_state import seed_random
from bundlerun.splits.stage import Forward, chunk_forwards
from bundlerun.workers.model.norms.batchnorm import StatisticsPool, has_own_forward, tracking_layers
from bundlerun.workers.model.rollback import rolled_back
from bundlerun.workers.values.nest import Leaf, form_sent, leaves, mapped

_SEED = 20


@dataclass(slots=True)
class Result:
    """The result of one pass through the model."""

    outputs: list[Leaf]
    gradients: dict[int, Tensor | None] = field(default_factory=dict)
    """By identity of the parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model and the stages made of it.

    Args:
        whole: the model as built.
        stages: of it, with modules of its own.
        chunks_per_stage: of the model.
    """

    whole: nn.Module
    stages: Sequence[nn.Module]
    chunks_per_stage: int = 1

    @property
    def roots(self) -> list[nn.Module]:
        """All that a pass may change."""
        return [self.whole, *self.stages]

    @property
    def chunks(self) -> Chunks:
        """Which stage has which chunk of the model."""
        return Chunks(len(self.stages), self.chunks_per_stage)

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one piece."""
        return self.chunks.num_chunks > 1

    @property
    def may_differ(self) -> bool:
        """Whether anything of the user's runs in another way than in the model itself.

        Not so for a whole model with torch's own batch norms: these run as they are, with other
        tensors in their buffers, which they overwrite.
        """
        layers = tracking_layers(self.whole).values()
        return self.is_cut or any(map(has_own_forward, layers))


Pass = Callable[[Subject, tuple[Any, ...]], Result]


class StageRaised(Exception):
    """A part of the model cannot do what the model can; the cause is the exception."""

    def __init__(self, part: int) -> None:
        super().__init__(part)
        self.part = part


def run(subject: Subject, how: Pass, inputs: tuple[Any, ...], training: bool) -> Result:
    """The result of one pass; modules and buffers are as before afterwards.

    Args:
        subject: in CPU memory.
        how: `whole_pass` or `staged_pass`.
        inputs: the pass gets copies.
        training: as opposed to evaluation, where there are no gradients.
    """
    copies = mapped(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    with rolled_back(subject.roots), torch.set_grad_enabled(training):
        # The same for every pass: dropout must drop the same.
        seed_random(_SEED)
        return how(subject, copies)


def whole_pass(subject: Subject, inputs: tuple[Any, ...]) -> Result:
    """The model as built."""
    subject.whole.train(torch.is_grad_enabled())
    result = subject.whole(*inputs)
    outputs = list(leaves(result))
    if torch.is_grad_enabled():
        _backward(outputs)
    return Result(_detached(outputs), _gradients(subject))


def staged_pass(subject: Subject, inputs: tuple[Any, ...]) -> Result:
    """Its stages, as a bundle does it: what crosses a cut arrives as a new tensor.

    Raises:
        StageRaised: one of them cannot.
    """
    for stage in subject.stages:
        stage.train(torch.is_grad_enabled())
    borders: list[tuple[list[Leaf], list[Tensor]]] = []
    arguments = inputs
    for number, forward in enumerate(_prepared(subject)):
        if number:
            try:
                form_sent(arguments)
            except ConfigError as exc:
                raise StageRaised(number - 1) from exc
            sent = list(leaves(arguments))
            arguments = mapped(_received, arguments)
            # Kept for the way back: gradients cross each border by hand, as a link carries them.
            borders.append((sent, _tensors(leaves(arguments))))
        try:
            result = forward(*arguments)
        except Exception as exc:
            raise StageRaised(number) from exc
        # A chunk gets what the one before returned as its arguments, as in a bundle.
        arguments = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    outputs = list(leaves(result))
    if torch.is_grad_enabled():
        _backward(outputs)
        # From the last border to the first, as the backward of a bundle goes.
        for sent, received in reversed(borders):
            _backward(sent, [t.grad for t in received])
    return Result(_detached(outputs), _gradients(subject))


def _prepared(subject: Subject) -> list[Forward]:
    """What each part of the model computes in training, in order."""
    chunks, forwards = subject.chunks, list[list[Forward]]()
    for stage in subject.stages:
        sums = torch.zeros(StatisticsPool.size(stage), dtype=torch.float64)
        pool = StatisticsPool(stage, sums)
        forwards.append([pool.around(f) for f in chunk_forwards(stage, chunks.per_stage)])
    # In order of the model: with several chunks per stage, stages take turns.
    return [forwards[chunks.stage_of(c)][chunks.own_of(c)] for c in range(chunks.num_chunks)]


def _received(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _backward(outputs: Sequence[Leaf], gradients: Sequence[Tensor | None] | None = None) -> None:
    tensors = _tensors(outputs)
    given = [_weights(t) for t in tensors] if gradients is None else list(gradients)
    pairs = [(t, g) for t, g in zip(tensors, given, strict=True) if t.requires_grad]
    if pairs:
        torch.autograd.backward(
            [t for t, _ in pairs], [torch.zeros_like(t) if g is None else g for t, g in pairs]
        )


def _tensors(found: Iterable[Leaf]) -> list[Tensor]:
    return [leaf.value for leaf in found if isinstance(leaf.value, Tensor)]


def _weights(tensor: Tensor) -> Tensor:
    """Some gradient that treats no two numbers alike, whatever the loss may be."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def _detached(outputs: Sequence[Leaf]) -> list[Leaf]:
    return [
        Leaf(place, value.detach().clone() if isinstance(value, Tensor) else value)
        for place, value in outputs
    ]


def _gradients(subject: Subject) -> dict[int, Tensor | None]:
    return {id(p): p.grad for p in subject.whole.parameters()}


class Call(NamedTuple):
    """One call of a module."""

    name: str
    outputs: list[Leaf]


def recorded(calls: list[Call], how: Pass) -> Pass:
    """The same pass; notes the calls of the modules that model and stages have in common."""

    def noting(subject: Subject, inputs: tuple[Any, ...]) -> Result:
        # By identity: a stage has the user's own modules, and may have others of its own.
        shared = {id(module) for stage in subject.stages for module in stage.modules()}
        for name, module in subject.whole.named_modules():
            if id(module) in shared:
                # Rolled back with everything else.
                module.register_forward_hook(_noting(calls, name))
        return how(subject, inputs)

    return noting


def _noting(calls: list[Call], name: str) -> Callable[[nn.Module, object, object], None]:
    return lambda module, inputs, output: calls.append(Call(name, _detached(list(leaves(output)))))
