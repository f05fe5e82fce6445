"""Compares models of torchvision and timm, prepared whole and cut in two, with plain torch.

    python -m tests.sweep_models [--library LIBRARY] [--cutter auto|graph|replay] [NAME ...]
    make sweep

For each model: loss and gradients of one training step, with dropout and drop path drawn alike,
as the bundle runs it (statistics gathered, what crosses the cut copied) and in plain torch. Prints
a line per model and the counts; ends with 1 where a model is another one without being refused.
Weights are random; of timm it takes a small model of each family. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from bundlerun.launcher.choices import CutterChoice
from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.models import make_stages
from bundlerun.splits.sources.build import build_model
from bundlerun.splits.stage import chunk_forwards
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.model.rollback import rolled_back
from bundlerun.workers.model.trial import Subject
from bundlerun.workers.values.nest import leaves

TOLERANCE = 1e-5
"""Of the largest gradient of the model; of the loss itself."""
NUM_CLASSES = 10
NUM_CANDIDATES = 4
SMALL_IMAGE = 64
SMALL = (
    "test",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xxt",
    "tiny",
    "xs",
    "mini",
    "small",
    "_18",
)
TORCHVISION_SIZES = {"inception_v3": 299, "googlenet": 96, "maxvit_t": 224}


@dataclass
class Step:
    """What one training step came to."""

    loss: float
    gradients: dict[str, Tensor] = field(default_factory=dict)


def loss_of(output: object) -> Tensor:
    """The same loss of any output: mean cross entropy, or squares, of all that is in it."""
    total = torch.zeros(())
    for leaf in leaves(output):
        if isinstance(leaf.value, Tensor) and leaf.value.is_floating_point():
            value = leaf.value
            if value.dim() == 2:
                target = torch.arange(len(value)) % value.shape[1]
                total = total + F.cross_entropy(value, target)
            else:
                total = total + value.square().mean()
    return total


def seed() -> None:
    torch.manual_seed(5)
    random.seed(5)


def plain_step(model: nn.Module, image: Tensor) -> Step:
    with rolled_back([model]):
        model.train()
        seed()
        loss = loss_of(model(image.clone()))
        loss.backward()
        return Step(loss.item(), grads(model))


def prepared_step(model: nn.Module, stages: Sequence[nn.Module], image: Tensor) -> Step:
    with rolled_back([model, *stages]):
        pools = [StatisticsPool(s, torch.zeros(StatisticsPool.size(s)).double()) for s in stages]
        for stage in stages:
            stage.train()
        seed()
        arguments: tuple[Any, ...] = (image.clone(),)
        borders = []
        for pool, stage in zip(pools, stages, strict=True):
            if stage is not stages[0]:
                sent = arguments
                arguments = tuple(map(received, sent))
                borders.append((tensors(sent), tensors(arguments)))
            result = pool.around(chunk_forwards(stage, 1)[0])(*arguments)
            arguments = result if isinstance(result, tuple) else (result,)
        loss = loss_of(result)
        loss.backward()
        for sent, got in reversed(borders):
            pairs = [
                (s, torch.zeros_like(g) if g.grad is None else g.grad)
                for s, g in zip(sent, got, strict=True)
                if s.requires_grad
            ]
            if pairs:
                torch.autograd.backward([s for s, _ in pairs], [g for _, g in pairs])
        return Step(loss.item(), grads(model))


def received(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def tensors(values: Iterable[object]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def difference(own: Step, other: Step) -> float:
    """The largest difference of gradients, or of the loss, relative to the largest value."""
    if own.gradients.keys() != other.gradients.keys():
        return float("inf")
    scale = max((float(g.abs().max()) for g in own.gradients.values() if g.numel()), default=1.0)
    worst = abs(own.loss - other.loss) / max(abs(own.loss), 1e-12)
    for name, gradient in own.gradients.items():
        if gradient.numel():
            worst = max(worst, float((gradient - other.gradients[name]).abs().max()) / scale)
    return worst


def verdict(model: nn.Module, stages: Sequence[nn.Module], image: Tensor, own: Step) -> str:
    """ "equal", "refused: ..." or "DIFFERS ..."."""
    try:
        worst = difference(own, prepared_step(model, stages, image))
        if worst <= TOLERANCE:
            return "equal"
        found = f"DIFFERS by {worst:.2g}"
    except Exception as exc:
        found = f"DIFFERS: raises {type(exc).__name__}: {first_line(exc)}"
    try:
        check_fidelity(Subject(whole=model, stages=stages), lambda: (image,), 1e9)
    except ConfigError as exc:
        return f"refused: {first_line(exc)}"
    if difference(own, plain_step(model, image)) > TOLERANCE:
        return "plain torch differs from itself"
    return found


def check_model(model: nn.Module, size: int, cutter: CutterChoice = "auto") -> list[str]:
    """The verdicts on the model uncut, and cut into two equal parts; how it is cut."""
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    own = plain_step(model, image)
    found = [verdict(model, [model], image, own)]
    said: list[str] = []
    try:
        stages = make_stages(
            model, cut=("2",), num_stages=2, inputs=(image,), cutter=cutter, tell=said.append
        )
    except ConfigError as exc:
        return [*found, f"refused: {first_line(exc)}", ""]
    except Exception as exc:
        return [*found, f"DIFFERS: the cut raises {type(exc).__name__}: {first_line(exc)}", ""]
    return [*found, verdict(model, stages, image, own), said[0].split(":")[0]]


def first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [""])[0][:200]


def torchvision_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


def torchvision_model(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    model = build_model(name, NUM_CLASSES)
    assert isinstance(model, nn.Module)
    is_fixed = name.startswith(("vit", "swin"))
    return model, TORCHVISION_SIZES.get(name, 224 if is_fixed else 64)


@cache
def timm() -> Any:
    try:
        import timm as library
    except ImportError as exc:
        raise SystemExit("timm is not installed; make sweep installs it") from exc
    return library


def timm_names() -> list[str]:
    """Its families."""
    return list(timm().list_modules())


def smallest(family: str) -> str:
    """The smallest of the models of a family whose names sound small."""
    names = timm().list_models(module=family)
    names.sort(key=lambda name: (not any(word in name for word in SMALL), len(name)))
    sizes = {}
    for name in names[:NUM_CANDIDATES]:
        with torch.device("meta"):
            try:
                model = timm().create_model(name, num_classes=NUM_CLASSES)
            except Exception:  # some read numbers while they are built
                continue
        sizes[name] = sum(p.numel() for p in model.parameters())
    return min(sizes, key=lambda n: sizes[n]) if sizes else names[0]


def timm_model(name: str) -> tuple[nn.Module, int]:
    """A model, or a small one of a family, and the size of its images: small if it takes them."""
    if name in timm_names():
        name = smallest(name)
    own: dict[str, Any] = timm().get_pretrained_cfg(name).to_dict()
    least = max(int((own.get("min_input_size") or own["input_size"])[-1]), SMALL_IMAGE)
    small: dict[str, Any] = {"img_size": SMALL_IMAGE}
    shallow: dict[str, Any] = {"depth": 2}
    for options, size in itertools.product(
        ({**small, **shallow}, small, shallow, {}), (SMALL_IMAGE, least)
    ):
        try:
            model = timm_variant(name, options)
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size))
        except Exception:  # a size that it does not take, or an option that it does not have
            continue
        return model, size
    return timm_variant(name, {}), int(own["input_size"][-1])


def timm_variant(name: str, options: dict[str, Any]) -> nn.Module:
    """With dropout and drop path, where it has them."""
    for drops in ({"drop_path_rate": 0.2, "drop_rate": 0.1}, {"drop_rate": 0.1}, {}):
        torch.manual_seed(0)
        try:
            model: nn.Module = timm().create_model(
                name, num_classes=NUM_CLASSES, **drops, **options
            )
        except TypeError:
            if not drops:
                raise
            continue
        return model
    raise AssertionError


LIBRARIES = {
    "torchvision": (torchvision_names, torchvision_model),
    "timm": (timm_names, timm_model),
}


def part(library: str, which: str) -> list[str]:
    first, count = map(int, which.split("/"))
    return LIBRARIES[library][0]()[first::count]


def lines(
    library: str, names: Iterable[str], cutter: CutterChoice
) -> Iterator[tuple[list[str], str]]:
    _, build = LIBRARIES[library]
    for name in names:
        start = time.perf_counter()
        try:
            found = check_model(*build(name), cutter)
        except Exception as exc:
            found = [*[f"plain torch raises {type(exc).__name__}: {first_line(exc)}"] * 2, ""]
        took = time.perf_counter() - start
        whole, cut, how = found
        yield [whole, cut], f"{name:32} {took:5.1f} s   whole: {whole}; {how or 'cut'}: {cut}"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=LIBRARIES, action="append")
    parser.add_argument("--cutter", choices=("auto", "graph", "replay"), default="auto")
    parser.add_argument("--part", default="0/1", help="1/3: the second third of them")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    is_fine = True
    for library in args.library or LIBRARIES:
        counts: list[Counter[str]] = [Counter(), Counter()]
        for found, line in lines(library, args.names or part(library, args.part), args.cutter):
            print(line, flush=True)
            for counter, text in zip(counts, found, strict=True):
                counter[text.split(":")[0].split(" by ")[0]] += 1
        for way, counter in zip(("whole", "cut"), counts, strict=True):
            print(f"{library}, {way}: {dict(counter)}", flush=True)
            is_fine = is_fine and not any(key.startswith("DIFFERS") for key in counter)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
