from __future__ import annotations

import pytest
import torch
from torch import nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.model.replica_check import NUM_SUMS, ReplicaCheck, cut_into_windows
from bundlerun.workers.values.module_tensors import tensor_places


def model() -> nn.Sequential:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4096))
    return module.to(memory_format=torch.channels_last)


def check_all(replicas: list[nn.Module], step: int) -> None:
    """What the ranks of a stage do in a step, one after another."""
    checks = [ReplicaCheck(m, "the replicas of stage 1", len(replicas)) for m in replicas]
    total = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for check in checks:
        own = torch.zeros(NUM_SUMS, dtype=torch.float64)
        check.write(own, step)
        total += own
    for check in checks:
        check.check(total.tolist(), step)


def check_a_turn(replicas: list[nn.Module]) -> None:
    """As many steps as look at everything."""
    for step in range(len(cut_into_windows(tensor_places(replicas[0])))):
        check_all(replicas, step)


def test_the_windows_cover_every_element_once() -> None:
    places = tensor_places(model())
    seen = {place.name: 0 for place in places}
    for window in cut_into_windows(places):
        assert 0 < window.end - window.start <= 16 << 10
        assert seen[window.place.name] == window.start
        seen[window.place.name] = window.end
    assert seen == {place.name: place.tensor.numel() for place in places}


def test_equal_replicas_pass_at_every_step() -> None:
    replicas = [model() for _ in range(3)]
    check_a_turn(replicas)


@pytest.mark.parametrize(
    "name", ["0.weight", "1.running_var", "1.num_batches_tracked", "3.weight", "3.bias"]
)
def test_the_last_bit_of_one_element_is_noticed_within_a_turn(name: str) -> None:
    replicas = [model() for _ in range(3)]
    tensor = replicas[1].state_dict()[name]
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1).reshape(-1)
    if tensor.is_floating_point():
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
    else:
        tensor += 1
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(8, 3, 3, 3).permute(0, 3, 1, 2))
    with pytest.raises(ConfigError, match=rf"replicas of stage 1 differ in .*'{name}'"):
        check_a_turn(replicas)


def test_two_elements_that_have_changed_places_are_noticed() -> None:
    replicas = [model() for _ in range(2)]
    bias = replicas[0].state_dict()["3.bias"]
    bias[[0, 1]] = bias[[1, 0]]
    with pytest.raises(ConfigError, match=r"3\.bias"):
        check_a_turn(replicas)


def test_a_stage_without_state_is_never_unequal() -> None:
    check_all([nn.ReLU(), nn.ReLU()], 3)
