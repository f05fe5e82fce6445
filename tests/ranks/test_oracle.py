"""torch's own Schedule1F1B, on the same two stages, gives the same loss and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from launcher.topology import Topology
from splits.graph import cut_model
from tests.ranks.harness import run_ranks
from tests.ranks.test_parity import CONFIG
from tests.ranks.tiny_model import Tiny
from workers.bundle import Bundle, StepWork
from workers.comm import Network
from workers.env import RankEnv
from workers.groups import make_groups
from workers.meters import Meters
from workers.recipe import load_recipe
from workers.samples import Batch

# A power of two: we weigh each loss, torch divides the sum of gradients, and both are exact.
NUM_MICROBATCHES, SIZE = 8, 4
SHAPE = (NUM_MICROBATCHES * SIZE, 3, 8, 8)


def stages() -> list[torch.nn.Module]:
    """The two stages, batch norms with fixed statistics: torch's pipeline would move them."""
    torch.manual_seed(1)
    model = Tiny(10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    return cut_model(model, ["second"])


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(SHAPE, generator=generator)
    return x, torch.randint(10, SHAPE[:1], generator=generator)


def ours(env: RankEnv, store: Store) -> tuple[dict[str, Tensor], Tensor | None]:
    topology = Topology((1, 1), (2,))
    network = Network(
        store=dist.PrefixStore("ours", store),
        rank=env.rank,
        backend="gloo",
        timeout_s=30,
        address="127.0.0.1",
    )
    place = topology.places[env.rank]
    stage = stages()[place.stage]
    bundle = Bundle(
        topology=topology,
        place=place,
        stage=stage,
        links=make_groups(topology, place, network).links,
        recipe=load_recipe(replace(CONFIG, precision="float32")),
        device=torch.device("cpu"),
        precision="float32",
        meters=Meters(),
    )
    x, y = batch()
    batches = iter([Batch((a,), b, 0) for a, b in zip(x.split(SIZE), y.split(SIZE), strict=True)])
    work = StepWork(seed=0, step=0, first=0, sizes=[SIZE] * NUM_MICROBATCHES, num_samples=SHAPE[0])
    outcome = bundle.train(work, batches, lambda: None)
    return {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}, outcome.loss


def of_torch(env: RankEnv, store: Store) -> tuple[dict[str, Tensor], list[Tensor]]:
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("torch", store), rank=env.rank, world_size=2
    )
    built = stages()
    x, y = batch()
    meta = torch.empty(SIZE, *SHAPE[1:], device="meta")
    middle = torch.empty(SIZE, 6, 4, 4, device="meta", requires_grad=True)
    last = torch.empty(SIZE, 10, device="meta")
    module = _Single(built[env.rank])
    stage = PipelineStage(
        module,
        env.rank,
        2,
        torch.device("cpu"),
        input_args=(meta if env.rank == 0 else middle,),
        output_args=(middle if env.rank == 0 else last,),
    )
    schedule = Schedule1F1B(stage, NUM_MICROBATCHES, loss_fn=torch.nn.functional.cross_entropy)
    losses: list[Tensor] = []
    if env.rank == 0:
        schedule.step(x)
    else:
        schedule.step(target=y, losses=losses)
    dist.destroy_process_group()
    found = {n: p.grad for n, p in built[env.rank].named_parameters() if p.grad is not None}
    return found, losses


class _Single(torch.nn.Module):
    """Torch's pipeline wants one tensor where a cut of one tensor gives a tuple of one."""

    def __init__(self, stage: torch.nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        result = self.stage(x)
        return result if isinstance(result, Tensor) else result[0]


def test_one_step_agrees_with_torchs_pipeline(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        mine, loss = ours(env, store)
        theirs, losses = of_torch(env, store)
        assert mine.keys() == theirs.keys()
        for name, gradient in theirs.items():
            assert torch.equal(mine[name], gradient), name
        if loss is not None:
            torch.testing.assert_close(loss.float(), torch.stack(losses).mean())

    run_ranks((2,), main, tmp_path)
