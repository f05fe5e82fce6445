"""What pieces cost is what the whole model costs, whichever way it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.planning.model_costs import ModelCosts
from bundlerun.launcher.planning.profile_request import Peak
from bundlerun.splits.profile.costs import Batch, estimated_costs, measured_costs
from bundlerun.splits.profile.passes import Subject
from bundlerun.splits.profile.pieces import Model, Pieces, pieces_of

WIDTH, BATCH = 8, 4
BYTES = BATCH * WIDTH * 4
"""Of what crosses each boundary of a `Chain`."""


class Chain(nn.Module):
    """Linear layers and tanh in turn: a linear layer keeps its input, tanh its result."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.tanh = nn.ModuleList(nn.Tanh() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer, tanh in zip(self.layers, self.tanh, strict=True):
            x = tanh(layer(x))
        return x


class Ticks:
    """A clock of which each look takes a second: of each piece, forward and backward."""

    def __init__(self) -> None:
        self._now = 0.0

    def mark(self) -> float:
        self._now += 1.0
        return self._now

    def seconds(self, marks: list[float]) -> list[float]:
        return [after - before for before, after in pairwise(marks)]


def _listed(model: Chain) -> list[nn.Module]:
    pairs = zip(model.layers, model.tanh, strict=True)
    return [module for pair in pairs for module in pair]


@pytest.fixture(params=["graph", "replay", "listed"])
def cut(request: pytest.FixtureRequest) -> tuple[Pieces, Chain]:
    torch.manual_seed(3)
    chain = Chain()
    model: Model = _listed(chain) if request.param == "listed" else chain
    inputs = [torch.empty(BATCH, WIDTH, device="meta")]
    return pieces_of(model, request.param if request.param != "listed" else "auto", inputs), chain


def _subject(pieces: Pieces, device: str = "cpu") -> Subject:
    given = torch.ones(BATCH, WIDTH, device=device)
    return Subject(
        forward=pieces.forward,
        count=pieces.count,
        inputs=lambda: (given.clone(),),
        judge=lambda output: output.sum(),
    )


SIZES = Batch(samples=BATCH, input_bytes=BYTES, target_bytes=0)
PEAK = Peak(flop_per_s=1e6, bytes_per_s=1e12)


def _measured(pieces: Pieces) -> ModelCosts:
    pieces.whole.train()
    return measured_costs(pieces, _subject(pieces), SIZES, Ticks())


def test_each_way_has_the_same_pieces_and_the_bytes_that_cross(
    cut: tuple[Pieces, Chain],
) -> None:
    costs = _measured(cut[0])
    assert len(costs.pieces) == 6
    assert [(b.forward_bytes, b.backward_bytes) for b in costs.boundaries] == [(BYTES, BYTES)] * 5


def test_each_storage_that_is_kept_counts_once(cut: tuple[Pieces, Chain]) -> None:
    costs = _measured(cut[0])
    # The first layer its input; each tanh its result, which is the next layer's input.
    assert [p.kept_bytes for p in costs.pieces] == [BYTES, BYTES, 0, BYTES, 0, BYTES]


def test_gradients_that_weights_wait_for_are_as_long_as_their_outputs(
    cut: tuple[Pieces, Chain],
) -> None:
    costs = _measured(cut[0])
    assert [p.split_bytes for p in costs.pieces] == [BYTES, 0] * 3
    # What crosses is kept where it is made, or by nobody.
    assert not any(b.late_bytes for b in costs.boundaries)


def test_what_only_later_pieces_keep_is_told_of_the_boundary() -> None:
    model = [nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)]
    costs = _measured(pieces_of(model, "auto", []))
    # GELU keeps its input, which the layer before has made and does not need.
    assert [p.kept_bytes for p in costs.pieces] == [BYTES, BYTES, BYTES]
    assert [b.late_bytes for b in costs.boundaries] == [BYTES, BYTES]


def test_parameters_are_the_piece_s_that_uses_them(cut: tuple[Pieces, Chain]) -> None:
    costs = _measured(cut[0])
    size = (WIDTH * WIDTH + WIDTH) * 4
    assert [p.parameter_bytes for p in costs.pieces] == [size, 0] * 3
    assert [p.trained_bytes for p in costs.pieces] == [size, 0] * 3
    assert not costs.shared


def test_the_longest_parameter_of_a_piece_is_told(cut: tuple[Pieces, Chain]) -> None:
    costs = _measured(cut[0])
    assert [p.longest_bytes for p in costs.pieces] == [WIDTH * WIDTH * 4, 0] * 3
    assert costs.part(0, 3).longest_bytes == WIDTH * WIDTH * 4


def test_parameters_without_a_gradient_are_counted(cut: tuple[Pieces, Chain]) -> None:
    pieces, chain = cut
    assert not any(p.num_unused for p in _measured(pieces).pieces)
    chain.layers[1].register_parameter("spare", nn.Parameter(torch.zeros(3)))
    chain.layers[1].register_parameter("frozen", nn.Parameter(torch.zeros(3), requires_grad=False))
    found = pieces_of(
        chain if pieces.cutter else _listed(chain),
        pieces.cutter or "auto",
        [torch.empty(BATCH, WIDTH, device="meta")],
    )
    # What nobody uses is counted with the last piece, or the one that has it.
    for each in (_measured(found), estimated_costs(found, _subject(found), SIZES, PEAK)):
        assert sum(p.num_unused for p in each.pieces) == 1
        assert each.part(0, len(each.pieces)).num_unused == 1


def test_times_add_up_to_those_of_the_whole_model(cut: tuple[Pieces, Chain]) -> None:
    costs = _measured(cut[0])
    # Without marks a forward is one tick, a backward another one.
    assert costs.total("forward_s", 0, 6) == pytest.approx(1)
    assert costs.total("backward_s", 0, 6) == pytest.approx(1)
    assert all(p.forward_s > 0 and p.backward_s > 0 for p in costs.pieces)


def test_the_first_piece_makes_gradients_of_weights_only(cut: tuple[Pieces, Chain]) -> None:
    first, *_ = _measured(cut[0]).pieces
    assert first.weight_s == pytest.approx(first.backward_s)


def test_an_estimate_counts_what_a_measurement_finds() -> None:
    with torch.device("meta"):
        chain = Chain()
    chain.train()
    pieces = pieces_of(chain, "graph", [torch.empty(BATCH, WIDTH, device="meta")])

    found = estimated_costs(pieces, _subject(pieces, "meta"), SIZES, PEAK)
    assert [p.kept_bytes for p in found.pieces] == [BYTES, BYTES, 0, BYTES, 0, BYTES]
    product = 2 * BATCH * WIDTH * WIDTH / 1e6
    assert found.pieces[2].forward_s == pytest.approx(product, rel=0.01)
    # Half of a product's backward is for its weights; all of the first one's.
    assert found.pieces[2].backward_s == pytest.approx(2 * product, rel=0.01)
    assert found.pieces[2].weight_s == pytest.approx(product, rel=0.01)
    assert found.pieces[0].weight_s == pytest.approx(product, rel=0.01)
    assert found.pieces[1].weight_s == pytest.approx(0, abs=1e-9)


class Tied(nn.Module):
    """The first and the last layer have one weight; the middle one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.last.weight = self.first.weight
        self.middle.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.middle(self.first(x)))
        return found


@pytest.mark.parametrize("cutter", ["graph", "replay"])
def test_what_several_pieces_use_is_shared_and_what_is_frozen_has_no_gradient(
    cutter: str,
) -> None:
    costs = _measured(pieces_of(Tied(), cutter, [torch.empty(BATCH, WIDTH, device="meta")]))
    (shared,) = costs.shared
    assert (shared.num_bytes, shared.pieces, shared.is_trained) == (WIDTH * WIDTH * 4, (0, 2), True)
    assert costs.pieces[1].trained_bytes == 0
    assert costs.pieces[1].parameter_bytes == (WIDTH * WIDTH + WIDTH) * 4
    assert costs.part(0, 1).trained_bytes == (WIDTH * WIDTH + WIDTH) * 4


class Whole(nn.Module):
    """Nobody can cut it: random numbers decide how much it does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(torch.rand(()) < 0.5)):
            x = self.layer(x)
        return x


def test_a_model_that_cannot_be_cut_is_one_piece() -> None:
    pieces = pieces_of(Whole(), "auto", [torch.empty(BATCH, WIDTH, device="meta")])
    costs = _measured(pieces)
    assert len(costs.pieces) == 1
    assert pieces.cutter is None
    assert "cannot cut Whole" in pieces.why
