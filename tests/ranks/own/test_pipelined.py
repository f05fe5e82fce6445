"""A user's own loop over a cut model: the same numbers as plain torch on the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import Store
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW

from bundlerun import Bundle, Cut
from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import run_ranks
from tests.ranks.own.launching import launched

BATCH, STEPS = 8, 3
CUT = Cut(shape=(1, 1), at=("second",), microbatch_size=2, precision="float64")


class Model(nn.Module):
    """Has two inputs, one of which is used in the rear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))) * scale)


def model() -> nn.Module:
    torch.manual_seed(3)
    return Model().double()


def batch(step: int, bundle: int, count: int = BATCH) -> tuple[tuple[Tensor, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(10 * step + bundle)
    x = torch.randn(count, 5, generator=draw, dtype=torch.float64)
    scale = torch.rand(count, 1, generator=draw, dtype=torch.float64)
    return (x, scale), torch.randint(3, (count,), generator=draw)


def right(output: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"right": (output.argmax(1) == targets).sum()}


def whole(num_bundles: int) -> tuple[list[float], list[float], dict[str, Tensor], float, float]:
    """Losses, norms, parameters, then the loss and the share of hits of an evaluation."""
    net = model()
    optimizer = AdamW(net.parameters(), lr=0.05)
    losses, norms = [], []
    for step in range(STEPS):
        (x, scale), targets = joined([batch(step, b) for b in range(num_bundles)])
        optimizer.zero_grad()
        loss = cross_entropy(net(x, scale), targets)
        loss.backward()
        norms.append(float(clip_grad_norm_(net.parameters(), 0.2)))
        optimizer.step()
        losses.append(loss.item())
    (x, scale), targets = joined([batch(99, b, 5) for b in range(num_bundles)])
    with torch.no_grad():
        output = net.eval()(x, scale)
    hits = float(right(output, targets)["right"]) / len(targets)
    return losses, norms, net.state_dict(), float(cross_entropy(output, targets)), hits


def joined(
    parts: list[tuple[tuple[Tensor, Tensor], Tensor]],
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    inputs = zip(*(part[0] for part in parts), strict=True)
    x, scale = (torch.cat(each) for each in inputs)
    return (x, scale), torch.cat([part[1] for part in parts])


def test_a_loop_over_two_bundles_does_what_plain_torch_does_with_the_whole_model(
    tmp_path: Path,
) -> None:
    losses, norms, parameters, evaluated, hits = whole(2)

    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        drawn = torch.get_rng_state()
        net, example = model(), batch(0, 0)[0]
        torch.set_rng_state(drawn)
        bundle = Bundle.of(net, cross_entropy, example, batch_size=BATCH, metrics=right, cut=CUT)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert (bundle.count, bundle.number, bundle.is_first) == (
            2, env.rank // 2, env.rank % 2 == 0,
        )  # fmt: skip
        optimizer = AdamW(bundle.parameters(), lr=0.05)
        with bundle:
            for step in range(STEPS):
                # Others than the first stage need no batch.
                given = batch(step, bundle.number) if bundle.is_first else ()
                optimizer.zero_grad()  # not needed, and no harm
                assert bundle.step(*given) == pytest.approx(losses[step], rel=1e-12)
                assert bundle.clip_grad_norm_(0.2) == pytest.approx(norms[step], rel=1e-9)
                optimizer.step()
            for name, parameter in bundle.named_parameters():
                assert torch.allclose(parameter, parameters[name], rtol=1e-9, atol=1e-12), name
            found = bundle.evaluate(*batch(99, bundle.number, 5), num_samples=5)
            assert found == pytest.approx(evaluated, rel=1e-9)
            assert bundle.metrics == {"right": pytest.approx(hits)}
            with pytest.raises(ConfigError, match=r"cannot save to '.*taken'"):
                bundle.save(tmp_path / "taken", optimizer)
            path = bundle.save(tmp_path / "kept", optimizer)
            assert (path / "manifest.json").is_file()
        with pytest.raises(ConfigError, match="this bundle is closed"):
            bundle.step(*given)

    # By this process, which the ranks take for another program's.
    taken = Claim(RunPaths(tmp_path / "taken"), Holder.of_process("other", "a test"), print)
    with taken.take():
        run_ranks((2, 2), main, tmp_path)
    again(tmp_path / "kept", parameters)


def again(folder: Path, parameters: dict[str, Tensor]) -> None:
    """One process takes up what four have saved, and goes on as they would have."""
    net, example = model(), batch(0, 0)[0]
    with Bundle.of(net, cross_entropy, example, batch_size=2 * BATCH, cut=CUT) as bundle:
        with pytest.raises(ConfigError, match="is of the optimizer AdamW, and this run has SGD"):
            bundle.load(folder, SGD(bundle.parameters(), lr=0.1))
        optimizer = AdamW(bundle.parameters(), lr=0.05)
        assert bundle.load(folder, optimizer) == STEPS
        own = dict(bundle.named_parameters())
        assert all(torch.allclose(own[n], p, rtol=1e-9) for n, p in parameters.items())
        assert len(optimizer.state) == len(own)
        assert bundle.load(folder / "nothing", optimizer) == 0
    other = nn.Linear(5, 3).double()
    with (
        Bundle.of(other, cross_entropy, example[:1], batch_size=BATCH, cut=CUT) as bundle,
        pytest.raises(CheckpointError, match=r"has no 'model\.bias'"),
    ):
        bundle.load(folder)


def test_what_cannot_be_a_step_is_refused_before_it() -> None:
    net, (inputs, targets) = model(), batch(0, 0)
    bundle = Bundle.of(net, cross_entropy, inputs, batch_size=BATCH, cut=CUT)
    for given, text in (
        ((), "no batch on a rank that has the first stage"),
        ((inputs,), "there are no targets; give them with the batch"),
        (batch(0, 0, 5), r"the batch has 5 samples at \[0\], and this bundle does 8 in a step"),
        ((inputs, targets[:3]), "the targets have 3 samples, and this bundle does 8"),
    ):
        with pytest.raises(ConfigError, match=text):
            bundle.step(*given)
    with pytest.raises(ConfigError, match="does 8 in this evaluation; num_samples= says how many"):
        bundle.evaluate(*batch(0, 0, 5))
    assert bundle.evaluate(*batch(0, 0, 5), num_samples=5) > 0
    assert bundle.step(inputs, targets) > 0
    bundle.close()
    bundle.close()


def test_a_parameter_that_is_thawed_later_is_refused() -> None:
    net = model()
    net.get_submodule("first").requires_grad_(False)
    inputs, targets = batch(0, 0)
    with Bundle.of(net, cross_entropy, inputs, batch_size=BATCH, cut=CUT) as bundle:
        assert bundle.step(inputs, targets) > 0
        for parameter in bundle.parameters():
            parameter.requires_grad_(True)
        with pytest.raises(ConfigError, match=r"a parameter of shape \[7, 5\] is trained now"):
            bundle.step(inputs, targets)


class Turned(nn.Module):
    """Has a complex parameter, whose gradient torch leaves to be conjugated later."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.polar(torch.ones(5), torch.arange(5.0)).to(torch.cdouble))

    def forward(self, x: Tensor) -> Tensor:
        return (self.turn.conj() * x.to(torch.cdouble)).real


def test_complex_gradients_are_clipped_as_pairs_of_reals() -> None:
    net, ((x, _), _) = Turned(), batch(0, 0)
    net(x).pow(2).mean().backward()
    assert net.turn.grad is not None
    gradient = net.turn.grad.resolve_conj()
    norm = torch.linalg.vector_norm(gradient).item()
    cut = Cut(shape=(1,), microbatch_size=2, precision="float64")
    with Bundle.of(Turned(), square, x, batch_size=BATCH, cut=cut) as bundle:
        bundle.step(x, x)
        assert bundle.clip_grad_norm_(norm / 4) == pytest.approx(norm, rel=1e-12)
        (parameter,) = bundle.parameters()
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient / 4, rtol=1e-4)


class Tied(Model):
    """What its head multiplies with is used in front, too."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(7, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.first.weight


def test_what_two_stages_share_counts_once_in_a_norm_and_stays_equal(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Tied().double()
    named = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = AdamW(net.parameters(), lr=0.05)
    wanted = []
    for step in range(STEPS):
        optimizer.zero_grad()
        (x, scale), targets = batch(step, 0)
        loss = cross_entropy(net(x, scale), targets)
        loss.backward()
        wanted.append((loss.item(), float(clip_grad_norm_(net.parameters(), 0.2))))
        optimizer.step()

    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        whole = Tied().double()
        whole.load_state_dict(named, strict=False)
        cut = Cut(shape=(1, 1), at=("second",), microbatch_size=2, precision="float64")
        with Bundle.of(whole, cross_entropy, batch(0, 0)[0], batch_size=BATCH, cut=cut) as bundle:
            own = AdamW(bundle.parameters(), lr=0.05)
            for step, (loss, norm) in enumerate(wanted):
                assert bundle.step(*batch(step, 0)) == pytest.approx(loss, rel=1e-12)
                assert bundle.clip_grad_norm_(0.2) == pytest.approx(norm, rel=1e-9)
                own.step()
            found = dict(bundle.named_parameters())
            assert "first.weight" in found
            for name, parameter in found.items():
                assert torch.allclose(parameter, net.get_parameter(name), rtol=1e-9), name

    run_ranks((2,), main, tmp_path)


def test_a_launcher_s_only_rank_has_the_whole_model(tmp_path: Path) -> None:
    losses = whole(1)[0]

    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        net = model()
        with Bundle.of(net, cross_entropy, batch(0, 0)[0], batch_size=BATCH, cut=CUT) as bundle:
            assert bundle.is_first
            assert bundle.is_reporter
            assert len([*bundle.parameters()]) == len([*net.parameters()])
            assert bundle.step(*batch(0, 0)) == pytest.approx(losses[0], rel=1e-12)

    run_ranks((1,), main, tmp_path)


def square(output: Tensor, _: Tensor) -> Tensor:
    return output.pow(2).mean()


class Decides(nn.Module):
    """Cannot be cut: it looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y) if float(y.sum()) > 0 else y


@pytest.mark.parametrize("case", ["ranks", "cut", "value", "microbatch", "precision"])
def test_what_cannot_be_a_bundle_is_refused_on_all_ranks(case: str, tmp_path: Path) -> None:
    text, net, cut = {
        "ranks": ("2 ranks are not a whole number of bundles of shape 1,1,1", model(), (1, 1, 1)),
        "cut": ("seccond", model(), Cut(at=("seccond",))),
        "value": ("Decides", Decides(), Cut()),
        "microbatch": ("batch_size=8 is not a multiple of", model(), Cut(microbatch_size=3)),
        "precision": ("float16", model(), Cut(precision="float16")),
    }[case]
    made = Cut(shape=cut) if isinstance(cut, tuple) else cut
    example = torch.randn(2, 2) if case == "value" else batch(0, 0)[0]

    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        with pytest.raises(ConfigError, match=text):
            Bundle.of(net, cross_entropy, example, batch_size=BATCH, cut=made)

    run_ranks((2,), main, tmp_path)
