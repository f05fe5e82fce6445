"""What the model is called with, known on every rank: shapes and types, no numbers (I4).

The first stage reads two samples for it, as it reads all: with its loading processes if there are
any.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.recipe import Recipe, model_inputs, shapes_vary
from bundlerun.workers.values.flat import dtype_named, name_of_dtype
from bundlerun.workers.values.nest import Form, built, form_of, leaves

log = logging.getLogger(__name__)
NUM_SAMPLES = 2
"""Enough for a batch norm, which takes no single value."""
_MOST_TOLD = 1024
"""Numbers of a tensor that is told by them, see `shapes_vary` of a recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The inputs of a small micro-batch; nothing where they could not be read."""

    inputs: tuple[Any, ...] = ()
    """Nested tensors on the meta device, which have a shape and a type; some with their numbers, in
    CPU memory."""
    num_samples: int = NUM_SAMPLES


def share_example(feed: Feed, session: Session, recipe: Recipe, num_stages: int) -> Example:
    """What the model is called with, the same on every rank of a bundle.

    Collective: the bundle.

    Args:
        feed: of this rank.
        session: has its place.
        recipe: may make other inputs of those.
        num_stages: of the bundle; one needs no example.

    Raises:
        NodeError: this node could not read them.
    """
    if num_stages == 1:
        return Example()
    is_first = session.place.stage == session.place.replica == 0
    own = _described(feed, recipe) if is_first else None
    return example_of(session.gather_bundle(own)[0])


def _described(feed: Feed, recipe: Recipe) -> dict[str, Any] | None:
    try:
        inputs = feed.example(NUM_SAMPLES)
    except ConfigError as exc:
        # All bundles find the same. The step that reads these samples says it, or does without.
        # What is wrong with this node (a loader died) ends the run: another bundle has an example,
        # and would cut elsewhere.
        log.debug("no example of the inputs: %s", exc)
        return None
    return describe(model_inputs(recipe, inputs), varies=shapes_vary(recipe))


def describe(inputs: tuple[Any, ...], *, varies: bool = False) -> dict[str, Any]:
    """Shapes and types of nested tensors, as JSON has them.

    Args:
        inputs: of the model.
        varies: whether shapes vary (`shapes_vary`): then tensors of few numbers are described by
            these, too. A model may look at them, such as whether a box has an area.
    """
    tensors = [leaf.value for leaf in leaves(inputs) if isinstance(leaf.value, Tensor)]
    is_stacked = tensors and tensors[0].dim() and not varies
    return {
        "form": form_of(inputs, lambda value: isinstance(value, Tensor)),
        "tensors": [
            [
                list(t.shape),
                name_of_dtype(t.dtype),
                t.tolist() if varies and t.numel() <= _MOST_TOLD else None,
            ]
            for t in tensors
        ],
        "num_samples": tensors[0].shape[0] if is_stacked else NUM_SAMPLES,
    }


def example_of(described: Mapping[str, Any] | None) -> Example:
    """The example that `describe` has described."""
    if described is None:
        return Example()
    form: Form = described["form"]
    made = (
        torch.empty(shape, dtype=dtype_named(dtype), device="meta")
        if numbers is None
        # Not with the form of a list, which says nothing of a shape such as (0, 4).
        else torch.tensor(numbers, dtype=dtype_named(dtype), device="cpu").view(shape)
        for shape, dtype, numbers in described["tensors"]
    )
    inputs = built(form, iter(made))
    assert isinstance(inputs, tuple)
    return Example(inputs=inputs, num_samples=described["num_samples"])
