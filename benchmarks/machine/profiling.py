"""What `bundlerun profile` costs: processor time of a profile over that of a step of training."""

from __future__ import annotations

import os
import statistics
import time

import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet50

from benchmarks.results.record import Check, Options, print_table
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.workers.train import profiled

CLAIM = "a profile of ResNet-50 takes at most 8 steps of training at that size, plus start"
MOST = 8.0
SAMPLES, SIDE = 8, 160


def run(options: Options) -> None:
    """Measures both in this process, on one thread: steps before and after the profile."""
    torch.set_num_threads(1)
    words = ["--model", "resnet50", "--image-size", str(SIDE), "--microbatch-size", str(SAMPLES)]
    config = read_train_argv([*words, "synthetic"], os.environ).value
    step = _Step()
    step.seconds()  # the first one makes what later ones find
    steps = [step.seconds() for _ in range(2)]
    start = time.process_time()
    profile = profiled(config)
    spent = time.process_time() - start
    steps += [step.seconds() for _ in range(2)]
    usual = statistics.median(steps)
    costs = profile.by_samples[0]
    count = len(costs.pieces)
    foreseen = costs.total("forward_s", 0, count) + costs.total("backward_s", 0, count)
    print_table(
        ("ResNet-50", "seconds"),
        [("a step", usual), ("the profile, its start too", spent), ("profiled passes", foreseen)],
    )
    options.record(
        "profiling",
        {"step_s": usual, "profile_s": spent, "pieces": count, "profiled_s": foreseen},
        [Check("profile over step, its start too, at most", spent / usual, MOST)],
    )


class _Step:
    """A plain step of training."""

    def __init__(self) -> None:
        self._model = resnet50().train()
        self._optimizer = torch.optim.SGD(self._model.parameters(), 0.1, momentum=0.9)
        self._images = torch.randn(SAMPLES, 3, SIDE, SIDE)
        self._target = torch.zeros(SAMPLES, dtype=torch.long)

    def seconds(self) -> float:
        """Of one, by the processor."""
        start = time.process_time()
        cross_entropy(self._model(self._images), self._target).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        return time.process_time() - start
