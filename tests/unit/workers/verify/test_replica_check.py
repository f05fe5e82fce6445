from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bundlerun.workers.verify.replica_check import NUM_SUMS, Finding, ReplicaCheck
from bundlerun.workers.verify.slices import entries_of

CPU = torch.device("cpu")
STEPS = 7


def model() -> nn.Sequential:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4096))
    return module.to(memory_format=torch.channels_last)


def trained(module: nn.Module) -> torch.optim.Optimizer:
    """Its optimizer, which keeps something for each parameter."""
    optimizer = torch.optim.AdamW(module.parameters())
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 0.1 * number)
    optimizer.step()
    return optimizer


class Replicas:
    """The ranks of a stage, one after another."""

    def __init__(self, modules: Sequence[nn.Module], most_steps: int = STEPS) -> None:
        self.optimizers = [trained(each) for each in modules]
        self.checks = [
            ReplicaCheck(lambda m=m, o=o: list(entries_of(m, o)), len(modules), CPU, most_steps)
            for m, o in zip(modules, self.optimizers, strict=True)
        ]

    def finding(self, step: int) -> Finding | None:
        """What a step finds."""
        total = torch.zeros(NUM_SUMS, dtype=torch.float64)
        for check in self.checks:
            own = torch.zeros(NUM_SUMS, dtype=torch.float64)
            check.write(own, step)
            total += own
        if all(check.is_equal(total.tolist()) for check in self.checks):
            return None
        return self.named()

    def named(self) -> Finding:
        """What each of them makes of it, which is the same."""
        told: list[Tensor] = []

        def heard(own: Tensor) -> Tensor:
            told.append(own)
            return own

        for replica, check in enumerate(self.checks):
            check.name(replica, heard)
        table = torch.stack(told).sum(0)
        found = [check.name(r, lambda _: table) for r, check in enumerate(self.checks)]
        assert all(each == found[0] for each in found)
        return found[0]

    def within_a_pass(self) -> Finding | None:
        """The first thing that as many steps find as look at everything."""
        findings = (self.finding(step) for step in range(STEPS))
        return next((each for each in findings if each is not None), None)


def test_equal_replicas_pass_at_every_step() -> None:
    replicas = Replicas([model() for _ in range(3)])
    assert [replicas.finding(step) for step in range(3 * STEPS)] == [None] * 3 * STEPS


def flip(tensor: Tensor, bit: int, element: int = -1) -> None:
    """Flips one bit in place, whatever the order in memory."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,), 0)
    words = flat.view({4: torch.int32, 8: torch.int64}[tensor.element_size()])
    words[element] ^= 1 << bit


NAMES = ["0.weight", "1.running_var", "1.num_batches_tracked", "3.weight", "3.bias"]


@pytest.mark.parametrize("bit", [0, 30])
@pytest.mark.parametrize("name", NAMES)
def test_a_bit_of_a_tensor_is_found_within_a_pass_and_named(name: str, bit: int) -> None:
    modules = [model() for _ in range(3)]
    replicas = Replicas(modules)
    flip(modules[1].state_dict()[name], bit)
    kind = "buffer" if name.startswith("1.") else "parameter"
    assert replicas.within_a_pass() == Finding(kind=kind, name=name, wrong=(1,))


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_a_bit_of_the_optimizers_state_is_found_and_named(key: str) -> None:
    modules = [model() for _ in range(3)]
    replicas = Replicas(modules)
    flip(replicas.optimizers[2].state[modules[2][3].bias][key], 3)
    wanted = Finding(kind="optimizer state", name=f"3.bias.{key}", wrong=(2,))
    assert replicas.within_a_pass() == wanted


def test_of_two_replicas_none_is_named() -> None:
    modules = [model() for _ in range(2)]
    replicas = Replicas(modules)
    flip(modules[0].state_dict()["3.bias"], 5)
    assert replicas.within_a_pass() == Finding(kind="parameter", name="3.bias", wrong=())


def test_two_elements_that_have_changed_places_are_found() -> None:
    modules = [model() for _ in range(3)]
    bias = modules[0].state_dict()["3.bias"]
    bias[[0, 1]] = bias[[1, 0]]
    found = Replicas(modules).within_a_pass()
    assert found is not None
    assert found.name == "3.bias"
    assert found.wrong == (0,)


def test_the_whole_comparison_looks_at_the_optimizers_state_too() -> None:
    modules = [model() for _ in range(3)]
    replicas = Replicas(modules)
    flip(replicas.optimizers[1].state[modules[1][3].weight]["exp_avg"], 1)
    told: list[Tensor] = []
    for replica, check in enumerate(replicas.checks):

        def heard(own: Tensor) -> Tensor:
            told.append(own)
            return 3 * own  # as if all had said the same

        assert check.verify(replica, heard) is None
    total, calls = torch.stack(told).sum(0), []

    def all_sum(own: Tensor) -> Tensor:
        calls.append(len(own))
        return total if len(calls) == 1 else own

    # That they differ; what each has, the others would have had to say.
    assert replicas.checks[0].verify(0, all_sum) is not None
    assert len(calls) == 2


def test_nothing_is_compared_where_there_is_one_replica_or_it_is_off() -> None:
    assert not Replicas([model()]).checks[0].is_on
    assert not Replicas([model(), model()], most_steps=0).checks[0].is_on


def test_a_stage_without_state_is_never_unequal() -> None:
    checks = [ReplicaCheck(list, 2, CPU, STEPS) for _ in range(2)]
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for check in checks:
        check.write(sums, 3)
        assert check.is_equal(sums.tolist())
