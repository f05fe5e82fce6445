"""How equally models of torchvision and timm can be cut in two: operations of the larger part.

    python -m tests.sweep_balance [--library torchvision|timm] [NAME ...]     or: make balance

For each model, without numbers (on the meta device): the share of the operations that the more
loaded of two stages gets by `--cut 2`, at the model's own image size. Prints a line per model, and
then which are worse than 60:40. Of timm it takes a small model of each family. Some minutes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from bundlerun.splits.costs import costs_of_stages
from bundlerun.splits.models import make_stages
from bundlerun.splits.replay.stage import ReplayStage
from bundlerun.splits.sources.build import build_model
from tests.sweep_models import (
    NUM_CLASSES,
    first_line,
    smallest,
    timm,
    timm_names,
    torchvision_names,
)

WORST = 0.6
TORCHVISION_SIZES = {"inception_v3": 299}
TORCHVISION_SIZE = 224
Built = tuple[str, nn.Module, int]
"""Name, model on the meta device, and the size of its images."""


def of_torchvision(name: str) -> Built:
    model = without_numbers(lambda: build_model(name, NUM_CLASSES))
    return name, model, TORCHVISION_SIZES.get(name, TORCHVISION_SIZE)


def of_timm(name: str) -> Built:
    name = smallest(name) if name in timm_names() else name
    size = int(timm().get_pretrained_cfg(name).to_dict()["input_size"][-1])
    model = without_numbers(lambda: timm().create_model(name, num_classes=NUM_CLASSES))
    return name, model, size


def without_numbers(build: Callable[[], object]) -> nn.Module:
    """The model on the meta device, moved there where its constructor reads numbers."""
    try:
        with torch.device("meta"):
            model = build()
    except Exception:
        model = build()
    assert isinstance(model, nn.Module)
    return model.to("meta")


def share_of_larger(model: nn.Module, size: int) -> tuple[float, str]:
    """The part of all operations that the more loaded of two stages has; how the model is cut.

    Raises:
        Exception: it cannot be cut in two, or its operations need numbers.
    """
    image = torch.empty(2, 3, size, size, device="meta")
    said: list[str] = []
    stages = make_stages(model, cut=("2",), num_stages=2, inputs=(image,), tell=said.append)
    counted = [stage.costs for stage in stages if isinstance(stage, ReplayStage)]
    costs = [c for c in counted if c is not None] or costs_of_stages(stages, (image,))
    operations = [cost.operations for cost in costs]
    return max(operations) / sum(operations), said[0].split(":")[0]


LIBRARIES = {"torchvision": (torchvision_names, of_torchvision), "timm": (timm_names, of_timm)}


def look_at(library: str, names: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Prints a line per model; returns the shares, and the names that have none."""
    all_names, build = LIBRARIES[library]
    shares: dict[str, float] = {}
    others: list[str] = []
    for family in names or all_names():
        name = family
        try:
            name, model, size = build(family)
            shares[family], how = share_of_larger(model, size)
            text = f"{shares[family]:4.0%}  {how}"
        except Exception as exc:
            others.append(family)
            text = f"   - {first_line(exc) or type(exc).__name__}"
        print(f"{family:24} {name:40} {text}", flush=True)
    return shares, others


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=LIBRARIES, action="append")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    for library in args.library or LIBRARIES:
        shares, others = look_at(library, args.names)
        worse = [f"{name} {share:.0%}" for name, share in shares.items() if share > WORST]
        print(
            f"{library}: {len(shares)} of {len(shares) + len(others)} counted, {len(worse)} worse "
            f"than {WORST:.0%}: {', '.join(worse) or 'none'}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
