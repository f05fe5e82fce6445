"""What the checks of a run cost: those at its start, and those that ride along with each step.

At the start, once per run:

    terms        options, files, data and versions, which all nodes compare
    fidelity     one small micro-batch through the stages and through the model as built
    forward      what the first forward writes to the state, beyond batch norms
    loss         whether it is a mean over samples

In each step: a checksum of a slice of the state, and the versions of all its tensors. Each is timed
by itself and divided by a step of the trainer, alternately; processor time, of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from statistics import median

import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.machine.loop import (
    BATCH,
    MICROBATCH,
    NUM_CLASSES,
    NUM_WARM_UP,
    TrainerLoop,
    make_microbatches,
)
from benchmarks.results.record import Check, Options, print_table
from bundlerun.launcher.agreement.agreed import terms_of
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.splits.models import make_stages
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.trial import Subject
from bundlerun.workers.pipeline.loss import LossCheck
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.verify.replica_check import NUM_SUMS, ReplicaCheck
from bundlerun.workers.verify.slices import STEPS, entries_of

CLAIM = "the checks of a run cost at most 0.3 s at its start and 0.2 % of a step"
MOST_START_S = 0.3
MOST_STEP_PERCENT = 0.2
_IMAGE_SIZE = 64
_CUT = ("layer2.1",)
_NUM_ROUNDS = 20
_LONGEST_S = 60.0


def run(options: Options) -> None:
    """Measures both, for the model of `make demo`."""
    torch.set_num_threads(1)
    num_rounds = options.rounds_or(_NUM_ROUNDS)
    start_ms = {
        name: median(cpu_ms(once) for _ in range(num_rounds))
        for name, once in start_checks().items()
    }
    step_ms, check_ms = measure_step(num_rounds)
    rows = [(f"start: {name}", ms) for name, ms in start_ms.items()]
    rows += [("a step of the trainer", step_ms), ("its checks", check_ms)]
    print_table(("what", "ms"), rows)
    checks = [
        Check(
            name="seconds of checks at the start, at most",
            measured=sum(start_ms.values()) / 1000,
            target=MOST_START_S,
        ),
        Check(
            name="percent of a step, at most",
            measured=100 * check_ms / step_ms,
            target=MOST_STEP_PERCENT,
        ),
    ]
    result = {"start_ms": start_ms, "step_ms": step_ms, "check_ms": check_ms}
    options.record("checks", {"rounds": num_rounds, "batch": BATCH, **result}, checks)


def cpu_ms(once: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    start = time.process_time()
    once()
    return 1000 * (time.process_time() - start)


def start_checks() -> dict[str, Callable[[], None]]:
    """Each check of the start, as it is done once."""
    config = TrainConfig(data="synthetic", shape=Shape((1, 1)), cut=_CUT, num_classes=NUM_CLASSES)
    images, targets = make_microbatches(_IMAGE_SIZE)[0]
    model = resnet18(num_classes=NUM_CLASSES)
    stages = make_stages(model, cut=_CUT, num_stages=2, model_name="resnet18")
    (whole,) = make_stages(model, cut=(), num_stages=1)
    subject = Subject(whole=whole, stages=stages)
    # Once, outside of what is timed: the check of the loss starts from outputs that are there.
    outputs = model.eval()(images).detach()

    def fidelity() -> None:
        check_fidelity(subject, lambda: (images,), _LONGEST_S)

    def terms() -> None:
        terms_of(config)

    def forward() -> None:
        model.train()
        state = ForwardState(model, 1, _itself)
        state.begin_step()
        state.watched(0, _nothing)(images)

    def loss() -> None:
        recipe = load_recipe(config)
        check = LossCheck(recipe, torch.device("cpu"))
        for _ in range(check.SAMPLES // MICROBATCH):
            check.look(recipe.loss(outputs, targets), outputs, targets, MICROBATCH)

    return {"terms": terms, "fidelity": fidelity, "forward": forward, "loss": loss}


def measure_step(num_rounds: int) -> tuple[float, float]:
    """Median milliseconds of a step of the trainer, and of what is checked in one; alternately."""
    batch = make_microbatches(_IMAGE_SIZE)
    build = partial(resnet18, num_classes=NUM_CLASSES)
    checked = checks_of(build())
    with closing(TrainerLoop(build, batch)) as loop:
        for _ in range(NUM_WARM_UP):
            loop.step()
        steps, checks = [], []
        for number in range(num_rounds):
            steps.append(cpu_ms(loop.step))
            # After each step, so that both see the same state of the machine.
            checks.append(cpu_ms(partial(checked, number)))
    return median(steps), median(checks)


def checks_of(model: nn.Module) -> Callable[[int], None]:
    """What a replica does in a step besides training: the argument is the step's number."""
    # Of two replicas that say the same, which is what a rank hears where all is well.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    entries = list(entries_of(model, optimizer))
    replicas = ReplicaCheck(lambda: entries, 2, torch.device("cpu"), STEPS)
    state = ForwardState(model, 1, _itself)
    forward = state.watched(0, _nothing)
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64)

    def step(number: int) -> None:
        sums.zero_()
        sums.zero_()
        replicas.write(sums, number)
        state.begin_step()
        for _ in range(BATCH // MICROBATCH):
            forward(sums)
        num_found = state.count_found()
        assert replicas.is_equal((2 * sums).tolist())
        state.settle(num_found, is_first=True)

    step(0)  # the first one compares the state as well: that is the start's
    return step


def _itself(values: torch.Tensor) -> torch.Tensor:
    return values


def _nothing(_: torch.Tensor) -> None:
    pass
