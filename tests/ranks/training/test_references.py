"""The recipes that ship train as torchvision's reference does: 20 steps, beside plain torch.

The other side is written from the definitions of their functions, with torch's and torchvision's
own: transforms, MixUp and CutMix, the order of repeated augmentation, groups by weight decay,
schedulers in sequence, AveragedModel. Both draw the same numbers. Models and images are small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.distributed import Store
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.workload.pictures import picture
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.splits.random_state import seed_random
from bundlerun.workers.data.order import mix_seed, sample_order
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import run_ranks
from tests.ranks.reference import averaged_model
from tests.ranks.training.test_parity import assert_close, final_tensors, run_state

MODELS = Path(__file__).parents[1] / "tiny_vision.py"
CLASSES, PER_CLASS, BATCH, STEPS = 4, 10, 8, 20
PER_EPOCH = CLASSES * PER_CLASS // BATCH
# Small enough to be past the warm-up, and for the average to move.
SMALL = (
    f"--batch-size={BATCH} --microbatch-size={BATCH} --epochs=8 --warmup-epochs=2 "
    f"--max-steps={STEPS} --model-ema-steps=2 --model-ema-decay=0.9 --precision=float64 "
    "--decode=exact --loader-workers=0 --timeout-s=30"
)
RECIPES = {
    "resnet50-v2": "convolutions --image-size=24 --val-resize-size=40 --val-crop-size=36",
    "vit-b-16": "transformer --image-size=32",
}
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass
class Theirs:
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", PER_CLASS), ("val", 3)):
        for name in range(CLASSES):
            folder = root / part / f"class{name}"
            folder.mkdir(parents=True)
            for n in range(count):
                picture(40 + n, 48, seed=100 * name + n + count).save(folder / f"{n}.png")
    return root


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet50-v2", "1"), ("vit-b-16", "1"), ("resnet50-v2", "1,1 --cut=2")],
)
def test_twenty_steps_are_theirs(name: str, shape: str, images: Path, tmp_path: Path) -> None:
    text = f"--config={name} {SMALL} --shape={shape} --model={MODELS}:{RECIPES[name]}"
    config = read_train_argv([*text.split(), str(images)], {}).value
    assert config.mixes
    assert config.model_ema

    run_state(config, (config.shape.size,), tmp_path)

    def main(env: RankEnv, store: Store) -> None:
        torch.save(asdict(theirs(config, images)), tmp_path / "theirs.pt")

    run_ranks((1,), main, tmp_path)
    wanted = Theirs(**torch.load(tmp_path / "theirs.pt"))
    rows = list(map(json.loads, RunPaths(tmp_path / "run").metrics.read_text().splitlines()))
    steps = [row for row in rows if row["kind"] == "step"]
    # Mixed pixels are in single precision on both sides.
    assert [row["loss"] for row in steps] == pytest.approx(wanted.losses, rel=1e-9)
    assert [row["lr"] for row in steps] == pytest.approx(wanted.rates, rel=1e-12)
    assert [row["metrics"]["top1"] for row in steps] == pytest.approx(wanted.top1)
    tensors = final_tensors(tmp_path)
    for prefix, side in (("model.", wanted.state), ("ema.", wanted.average)):
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        real = {n: t for n, t in side.items() if t.is_floating_point()}
        assert_close({n: found[n] for n in real}, real, 1e-8)
    *_, last = (row for row in rows if row["kind"] == "eval")
    told = {"loss": last["loss"], **last["metrics"]}
    assert {n: told[n] for n in wanted.validated} == pytest.approx(wanted.validated, rel=1e-8)


# --- the other side


def theirs(config: TrainConfig, root: Path) -> Theirs:
    """Trains as references/classification/train.py does, on one process."""
    train, val = ImageFolder(root / "train"), ImageFolder(root / "val")
    torch.manual_seed(mix_seed(config.seed))
    model = built(config).double().train()
    optimizer = optimizer_of(config, model)
    schedule = schedule_of(config, optimizer)
    averaged = averaged_model(config, model)
    found = Theirs()
    for epoch in range(STEPS // PER_EPOCH):
        for i, (pixels, target) in enumerate(batches(config, train, epoch)):
            output = model(pixels)
            loss = cross_entropy(output, target, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            found.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if i % config.model_ema_steps == 0:
                averaged.update_parameters(model)
                if epoch < config.warmup_epochs:
                    averaged.n_averaged.fill_(0)
            found.losses.append(loss.item())
            # By topk, as theirs: of equal outputs it takes another than argmax does.
            right = output.topk(CLASSES, 1).indices[:, 0] == target.max(dim=1)[1]
            found.top1.append(right.double().mean().item())
        schedule.step()
    found.state, found.average = model.state_dict(), averaged.module.state_dict()
    for prefix, each in (("", averaged), ("raw_", model)):
        found.validated |= {prefix + n: v for n, v in validated(config, each, val).items()}
    return found


def built(config: TrainConfig) -> nn.Module:
    space: dict[str, Any] = {}
    exec(MODELS.read_text(), space)
    made: nn.Module = space[config.model.rpartition(":")[2]](CLASSES)
    return made


def optimizer_of(config: TrainConfig, model: nn.Module) -> optim.Optimizer:
    """By set_weight_decay: norms by their class."""
    norms = [p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()]
    known = set(map(id, norms))
    others = [p for p in model.parameters() if id(p) not in known]
    decay = config.norm_weight_decay if config.norm_weight_decay >= 0 else config.weight_decay
    groups = [
        {"params": others, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": decay},
    ]
    if config.optimizer == "adamw":
        return optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def schedule_of(config: TrainConfig, optimizer: optim.Optimizer) -> SequentialLR:
    warmup = int(config.warmup_epochs)
    return SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=config.warmup_decay, total_iters=warmup),
            CosineAnnealingLR(optimizer, T_max=config.epochs - warmup),
        ],
        milestones=[warmup],
    )


def batches(
    config: TrainConfig, images: ImageFolder, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """As preset, sampler and collate_fn make them, with our seeds."""
    policy: dict[str, v2.Transform] = {
        "ta-wide": v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
        "ra": v2.RandAugment(magnitude=9, interpolation=v2.InterpolationMode.BILINEAR),
    }
    preset = v2.Compose(
        [
            v2.RandomResizedCrop(config.image_size, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            policy[config.auto_augment],
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            *([v2.RandomErasing(p=config.random_erase)] if config.random_erase else []),
        ]
    )
    mixup_cutmix = v2.RandomChoice(
        [
            v2.MixUp(alpha=config.mixup_alpha, num_classes=CLASSES),
            v2.CutMix(alpha=config.cutmix_alpha, num_classes=CLASSES),
        ]
    )
    count = len(images)
    # RASampler of one process: each sample so many times in a row, as many as there are samples.
    chosen = sample_order(config.seed, epoch, count)
    times = [(index, n) for index in chosen for n in range(config.ra_reps)][:count]
    for first in range(0, count, BATCH):
        samples = []
        for index, n in times[first : first + BATCH]:
            seed_random(mix_seed(config.seed, epoch, index, *([n] if n else [])))
            image, target = images[index]
            samples.append((preset(image), target))
        pixels = torch.stack([image for image, _ in samples])
        classes = torch.tensor([target for _, target in samples])
        entries = [index + count * n for index, n in times[first : first + BATCH]]
        seed_random(mix_seed(config.seed, epoch, -1, *entries))
        # One-hot in double precision, as the model computes in it.
        mixed, soft = mixup_cutmix(pixels, one_hot(classes, CLASSES).double())
        yield mixed.double(), soft


@torch.no_grad()
def validated(config: TrainConfig, model: nn.Module, images: ImageFolder) -> dict[str, float]:
    preset = v2.Compose(
        [
            v2.Resize(config.val_resize),
            v2.CenterCrop(config.val_crop),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    pixels = torch.stack([preset(image) for image, _ in images]).double()
    classes = torch.tensor(images.targets)
    output = model.eval()(pixels)
    loss = cross_entropy(output, classes, label_smoothing=config.label_smoothing)
    top1 = (output.argmax(1) == classes).double().mean()
    return {"loss": loss.item(), "top1": top1.item()}
