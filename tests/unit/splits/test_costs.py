"""What steps and stages cost, and that equal cuts balance it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from bundlerun.splits.costs import costs_of_stages, without_numbers
from bundlerun.splits.graph.model import TracedModel
from bundlerun.splits.models import choose_cuts, make_stages


class Uneven(nn.Module):
    """Many parameters that do little (an embedding), then few that do much."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50_000, 8)
        self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])
        self.wide = nn.Linear(8, 512)
        self.narrow = nn.Linear(512, 8)
        self.scale = torch.ones(8)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(self.layers(self.table(x)) * self.scale)))


TOKENS = torch.empty(2, 16, dtype=torch.int64, device="meta")


def operations(stages: list[nn.Module], inputs: list[Tensor], chunks: int = 1) -> list[int]:
    return [cost.operations for cost in costs_of_stages(stages, inputs, chunks)]


def test_equal_cuts_balance_operations_where_the_inputs_are_known() -> None:
    model = Uneven()
    by_work = make_stages(model, cut=["2"], num_stages=2, inputs=[TOKENS])
    by_bytes = make_stages(model, cut=["2"], num_stages=2)
    assert operations(by_work, [TOKENS]) == [2 * 32 * (6 * 64 + 4096), 2 * 32 * 4096]
    assert operations(by_bytes, [TOKENS])[0] == 0


def test_an_early_cut_that_few_bytes_cross_does_not_come_before_balance() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 8, 2, 32, 64, num_classes=3)
    image = torch.empty(2, 3, 16, 16, device="meta")
    for num_stages in (2, 4):
        stages = make_stages(model, cut=[str(num_stages)], num_stages=num_stages, inputs=[image])
        counts = operations(stages, [image])
        assert max(counts) <= 1.1 * sum(counts) / num_stages


def test_stages_with_more_devices_get_more_of_the_work() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(9)])
    x = torch.empty(2, 8, device="meta")
    stages = make_stages(model, cut=["2"], num_stages=2, widths=[2, 1], inputs=[x])
    front, rear = operations(stages, [x])
    assert front == 2 * rear


def test_chunks_of_stages_share_the_work_and_are_counted_together() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(8)])
    x = torch.empty(2, 8, device="meta")
    stages = make_stages(model, cut=["4"], num_stages=2, chunks_per_stage=2, inputs=[x])
    costs = costs_of_stages(stages, [x], 2)
    assert [cost.operations for cost in costs] == [2 * 2 * 4 * 64] * 2
    # Part 0 and part 2 are sent on by stage 0, part 1 by stage 1; 2 rows of 8 numbers.
    assert [cost.sent_bytes for cost in costs] == [2 * 64, 64]


def test_parameter_bytes_stand_in_where_operations_cannot_be_counted() -> None:
    class NeedsNumbers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(NeedsNumbers(), *[nn.Linear(8, 8) for _ in range(4)])
    x = torch.empty(2, 8, device="meta")
    assert choose_cuts(TracedModel(model, 1), ["2"], [1, 1], [x]) == ("3",)


def test_counting_leaves_the_model_its_numbers() -> None:
    model = Uneven()
    state = {name: id(tensor) for name, tensor in model.named_parameters()}
    scale = model.scale
    with without_numbers(model):
        assert model.scale.is_meta
        assert all(p.is_meta for p in model.parameters())
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == state
    assert model.scale is scale


class Remembers(nn.Module):
    """Makes tables when it is called first, counts its calls, and replaces a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.by_size: dict[int, Tensor] = {}
        self.calls = 0
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps = self.get_buffer("steps") + 1
        if self.table is None:
            self.table = torch.ones(x.shape[-1], device=x.device)
            self.register_buffer("mask", torch.ones(x.shape[-1], device=x.device))
        table = self.by_size.setdefault(x.shape[-1], torch.ones(x.shape[-1], device=x.device))
        return x * self.table * table * self.get_buffer("mask")


def test_counting_leaves_nothing_of_what_a_forward_makes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Remembers(), nn.Linear(8, 8))
    part = model[1]
    x = torch.empty(2, 8, device="meta")
    assert operations(make_stages(model, cut=["2"], num_stages=2, inputs=[x]), [x]) == [256, 256]
    assert (part.table, part.calls, part.by_size) == (None, 0, {})
    assert list(part._buffers) == ["steps"]
    assert part.steps.device.type == "cpu"
    assert model(torch.ones(2, 8)).shape == (2, 8)


def test_tied_parameters_stay_one_while_counting() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with without_numbers(model):
        assert model[1].weight is model[0].weight


def test_the_same_cut_is_found_every_time() -> None:
    image = torch.empty(2, 3, 16, 16, device="meta")
    cuts = []
    for _ in range(2):
        model = VisionTransformer(16, 4, 8, 2, 32, 64, num_classes=3)
        traced = TracedModel(model, 1)
        cuts.append(traced.equal_cuts(3, inputs=[image]))
    assert cuts[0] == cuts[1]


@pytest.mark.parametrize("size", [32, 64])
def test_the_size_of_the_inputs_counts(size: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 1024)
    )
    image = torch.empty(2, 3, size, size, device="meta")
    stages = make_stages(model, cut=["2"], num_stages=2, inputs=[image])
    front, _ = operations(stages, [image])
    assert front == 2 * 2 * 4 * 27 * (size - 2) ** 2
