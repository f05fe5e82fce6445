"""The average of a stage's weights is that of torchvision's references, for each stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError
from bundlerun.workers.optim.average import Average
from tests.ranks.reference import averaged_model

PER_EPOCH = 5


def config(**options: Any) -> TrainConfig:
    # A weight of 0.3 for what is new.
    common = {"batch_size": 10, "epochs": 4, "model_ema_decay": 0.94}
    return TrainConfig(data="x", model_ema=True, **{**common, "model_ema_steps": 2, **options})


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(6, 6), nn.Linear(6, 6))
    model[3].weight = model[2].weight
    return model


def train_on(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.ones_like(tensor) if tensor.ndim == 0 else torch.randn(tensor.shape))


def real(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("ema."): t for n, t in tensors.items() if t.is_floating_point()}


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 1.0, 1.5])
def test_it_moves_when_and_as_theirs_does(warmup: float, steps: int) -> None:
    chosen = config(warmup_epochs=warmup, model_ema_steps=steps, model_ema_decay=0.97)
    model = net()
    average, theirs = Average(chosen, model), averaged_model(chosen, model)
    for step in range(4 * PER_EPOCH):
        train_on(model)
        epoch, in_epoch = divmod(step, PER_EPOCH)
        if in_epoch % steps == 0:
            theirs.update_parameters(model)
            if epoch < warmup:
                theirs.n_averaged.fill_(0)
        average.expect(step, PER_EPOCH)
        average.follow()
        average.follow()  # once is enough
        found, wanted = real(average.state()), real(theirs.module.state_dict())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["0.weight"], model[0].weight)  # type: ignore[index]


def test_whole_numbers_are_copied() -> None:
    model = net()
    average = Average(config(model_ema_steps=1), model)
    for step in range(7):
        train_on(model)
        average.expect(step, PER_EPOCH)
        average.follow()
    assert average.state()["ema.1.num_batches_tracked"] == 7


def test_what_does_not_change_does_not_drift() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = Average(config(model_ema_steps=1), model)
    for step in range(50):
        average.expect(step, PER_EPOCH)
        average.follow()
    found = average.state()
    assert all(torch.equal(found["ema." + name], tensor) for name, tensor in before.items())


def test_in_place_of_the_weights_it_is_for_a_while_to_the_bit() -> None:
    model = net()
    average = Average(config(), model)
    train_on(model)
    old, new = (
        {name: tensor.clone() for name, tensor in each.items()}
        for each in (real(average.state()), real(model.state_dict()))
    )
    memory = [p.data_ptr() for p in model.parameters()]
    with average.in_place():
        assert_equal(real(model.state_dict()), old)
        assert_equal(real(average.state()), new)
    assert_equal(real(model.state_dict()), new)
    assert_equal(real(average.state()), old)
    assert [p.data_ptr() for p in model.parameters()] == memory


def test_it_is_kept_under_all_names_and_loaded_again() -> None:
    model, other = net(), net()
    average = Average(config(), model)
    train_on(other)
    again = Average(config(), other)
    state = average.state()
    assert set(state) == {"ema." + name for name in model.state_dict()}
    assert set(average.state(without=["2.weight", "3.weight"])) == set(state) - {
        "ema.2.weight",
        "ema.3.weight",
    }
    assert again.names([*state, "model.0.weight", "ema.elsewhere"]) == list(state)

    again.load({**state, "model.0.weight": torch.zeros(1)})

    assert_equal(again.state(), state)


def test_a_run_that_had_none_begins_with_its_weights() -> None:
    model = net()
    average = Average(config(), model)
    train_on(model)
    average.load({"model.0.weight": torch.zeros(1)})
    assert_equal(real(average.state()), real(model.state_dict()))


def test_the_average_of_another_model_is_refused() -> None:
    average = Average(config(), net())
    state = average.state()
    del state["ema.0.weight"]
    with pytest.raises(CheckpointError, match=r"the average of '0\.weight'.* another --model"):
        average.load(state)


def test_without_the_option_there_is_none() -> None:
    average = Average(TrainConfig(data="x"), net())
    average.expect(0, PER_EPOCH)
    average.follow()
    assert (average.is_kept, average.state(), average.names(["ema.0.weight"])) == (False, {}, [])
    average.load({"ema.0.weight": torch.zeros(1)})


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
