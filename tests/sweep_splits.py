"""Cuts every torchvision classification model, on the meta device; run by hand, takes minutes.

    python -m tests.sweep_splits [NAME ...]

For each model: two stages of about equal parameter bytes and some boundaries at random, forward in
both modes, shapes and state names as in the unsplit model. Prints one line per model and ends with
1 if one failed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bundlerun.splits.graph.model import TracedModel
from bundlerun.splits.meta import build_on_default_device
from bundlerun.splits.sources.build import build_model

NUM_SAMPLED = 6
SIZES = {"inception_v3": 299}


def shapes(output: object) -> list[torch.Size]:
    return [t.shape for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


def run(stages: Sequence[nn.Module], image: Tensor) -> object:
    result: object = (image,)
    for stage in stages:
        result = stage(*result)  # type: ignore[misc]
    return result


def check(traced: TracedModel, cuts: Sequence[str], image: Tensor) -> None:
    model = traced.model
    stages = traced.cut(cuts)
    names = [name for stage in stages for name in stage.state_dict()]
    assert sorted(names) == sorted(model.state_dict()), "state names differ"
    for training in (True, False):
        model.train(training)
        for stage in stages:
            stage.train(training)
        assert shapes(run(stages, image)) == shapes(model(image)), "output shapes differ"


def check_model(name: str) -> str:
    start = time.perf_counter()
    with torch.device("meta"):
        model = build_on_default_device(partial(build_model, name, 10))
        size = SIZES.get(name, 224)
        image = torch.empty(2, 3, size, size)
    assert isinstance(model, nn.Module)
    traced = TracedModel(model)
    equal = traced.equal_cuts(2)
    traced_s = time.perf_counter() - start
    check(traced, equal, image)
    names = traced.names
    for seed in range(NUM_SAMPLED):
        check(traced, [random.Random(seed).choice(names)], image)
    num = len(traced.boundaries)
    return f"{num:5} boundaries, {len(traced.refused):4} refused, {traced_s:4.1f} s, {equal[0]}"


def lines(names: Sequence[str]) -> Iterator[tuple[bool, str]]:
    for name in names:
        try:
            yield True, f"{name:24} {check_model(name)}"
        except Exception as exc:
            yield False, f"{name:24} FAILED {type(exc).__name__}: {exc}"


def main(argv: Sequence[str]) -> int:
    names = argv or torchvision.models.list_models(module=torchvision.models)
    is_fine = True
    for fine, line in lines(names):
        print(line, flush=True)
        is_fine = is_fine and fine
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
