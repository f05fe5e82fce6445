"""Pure: from what is seen of machine and data to options, each with the reason for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.layout.loaders import num_loaders
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.models.name import OF_BOXES, OF_IMAGES, OF_PIXELS, OF_TEXT, OF_TEXTS
from bundlerun.launcher.proposal.data_look import DataLook
from bundlerun.launcher.proposal.machine_look import MachineLook

Value = str | int | float | bool
_OF_PICTURES = (OF_IMAGES, OF_PIXELS)
_MODELS = {
    OF_PIXELS: "torchvision:deeplabv3_resnet50",
    OF_BOXES: "torchvision:fasterrcnn_resnet50_fpn",
}
_FEW_IMAGES = 20_000
_PER_DEVICE = {"gpu": 128, "cpu": 32}
_PER_DEVICE_LARGE = {"gpu": 4, "cpu": 2}
"""Of segmentation and detection."""
_LEAST_STEPS = 20
"""Of an epoch, before a smaller batch is proposed."""
_MULTIPLE = 8
_LR_BATCH = 256
_USUAL_SIDE = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One key of the file.

    why: says where the value is from, or when another is right.
    is_on: False: written as a comment, to be made active by removing one character.
    """

    key: str
    value: Value
    why: str
    is_on: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A heading and its keys."""

    title: str
    lines: tuple[Line, ...]


def propose(
    machine: MachineLook, data: DataLook, *, model: str = "", recipe: str = ""
) -> list[Part]:
    """The parts of the file.

    Args:
        model: what the user gives; empty proposes one.
        recipe: likewise; empty is what reads the data.
    """
    recipe = recipe or data.recipe
    batch = _batch_size(machine, data, recipe)
    return [
        Part(title="what to train", lines=tuple(_what(machine, data, model, recipe))),
        Part(title="batch and bundles", lines=tuple(_bundles(machine, data, batch))),
        Part(title="optimizer", lines=tuple(_optimizer(data, batch, recipe))),
        Part(title="data", lines=tuple(_data(machine, data, recipe))),
        Part(title="devices and nodes", lines=tuple(_nodes(machine))),
        Part(title="run", lines=tuple(_run(machine))),
    ]


def _what(machine: MachineLook, data: DataLook, model: str, recipe: str) -> Iterator[Line]:
    yield Line(key="data", value=data.data, why=_about(data))
    yield Line(
        key="recipe", value=recipe,
        why="What reads the data as it lies there." if recipe == data.recipe else "As you gave it.",
        is_on=recipe != OF_IMAGES,
    )  # fmt: skip
    if model:
        yield Line(key="model", value=model, why="As you gave it.")
    elif recipe == OF_IMAGES:
        is_small = machine.kind == "cpu" or 0 < data.num_train < _FEW_IMAGES
        why = (
            "Small: it learns from few images, and trains on a CPU. resnet50 is the usual next one."
            if is_small
            else "The usual first one for so many images."
        )
        yield Line(key="model", value="resnet18" if is_small else "resnet50", why=why)
    elif recipe in _MODELS:
        yield Line(key="model", value=_MODELS[recipe], why="The usual one for this.")
    elif recipe in (OF_TEXT, OF_TEXTS):
        yield Line(
            key="model", value="hf:FOLDER", is_on=False,
            why="Needed: a folder with the config.json of a model of transformers, and for its "
            "weights too --init-from.",
        )  # fmt: skip
    if recipe in _OF_PICTURES:
        found = f"{data.num_classes:,} in the data" if data.num_classes else "not seen in the data"
        yield Line(
            key="num-classes", value=data.num_classes or 1000, is_on=False,
            why=f"Classes: {found}. A run counts them itself; give it for outputs that no class of "
            "the data has.",
        )  # fmt: skip
    yield Line(
        key="init-from", value="resnet50.safetensors", is_on=False,
        why="Weights to begin with: a file that you have. Nothing is downloaded.",
    )  # fmt: skip


def _about(data: DataLook) -> str:
    parts = []
    if data.num_train:
        about = "" if data.is_counted else "about "
        parts.append(f"{about}{data.num_train:,} samples for training")
    if data.num_classes:
        parts.append(f"{data.num_classes:,} classes")
    if data.num_opened:
        parts.append(
            f"of {data.num_opened} images half have a shorter side of {data.side} pixels or less, "
            f"the longest side of all is {data.largest}"
        )
    return ("; ".join(parts) or "Not opened: the run counts it.").capitalize()


def _batch_size(machine: MachineLook, data: DataLook, recipe: str) -> int:
    """For all devices, as large as leaves an epoch enough steps."""
    each = (_PER_DEVICE_LARGE if recipe in (OF_PIXELS, OF_BOXES) else _PER_DEVICE)[machine.kind]
    while (
        data.num_train and each > 1 and each * machine.num_devices * _LEAST_STEPS > data.num_train
    ):
        each //= 2
    if recipe in (OF_PIXELS, OF_BOXES):
        return each * machine.num_devices
    return max(_MULTIPLE, each * machine.num_devices // _MULTIPLE * _MULTIPLE)


def _bundles(machine: MachineLook, data: DataLook, batch: int) -> Iterator[Line]:
    count, one = machine.num_devices, "GPU" if machine.kind == "gpu" else "CPU slot"
    if count == 1:
        why = f"One {one} here, so the model is whole."
    else:
        why = (
            f"Each of the {count} {one}s has the whole model: fastest while it fits. 1,1 cuts it "
            "over two devices, 1,1,1,1 over four; bundlerun plan --costs shows what each part has."
        )
    yield Line(key="shape", value="1", why=why)
    steps = f", {data.num_train // batch:,} steps an epoch" if data.num_train else ""
    yield Line(
        key="batch-size", value=batch,
        why=f"Samples of one step over all devices of all nodes: {batch / count:g} for each "
        f"{one} here{steps}.",
    )  # fmt: skip


def _optimizer(data: DataLook, batch: int, recipe: str) -> Iterator[Line]:
    is_text = recipe in (OF_TEXT, OF_TEXTS, "characters")
    if is_text:
        yield Line(key="optimizer", value="adamw", why="Usual for transformers.")
        yield Line(key="lr", value=1e-3 if recipe == "characters" else 2e-5, why="Usual with it.")
    else:
        base = 0.02 if recipe == OF_BOXES else 0.01 if recipe == OF_PIXELS else 0.1
        of = {OF_BOXES: 16, OF_PIXELS: 16}.get(recipe, _LR_BATCH)
        yield Line(
            key="lr", value=float(f"{base * batch / of:.3g}"),
            why=f"{base} for a batch of {of}, in proportion to yours.",
        )  # fmt: skip
    epochs = 90 if data.num_train >= 500_000 else 30 if recipe == OF_IMAGES else 10
    yield Line(
        key="epochs", value=epochs, why="Passes over the data; more of them help, up to a point."
    )
    yield Line(
        key="lr-schedule", value="cosine",
        why="Falls to 0 until the end; others: one-cycle, step, constant.", is_on=False,
    )  # fmt: skip
    yield Line(
        key="warmup-epochs", value=5, is_on=False,
        why="The rate rises over so many epochs; for batches of some thousand samples.",
    )  # fmt: skip


def _data(machine: MachineLook, data: DataLook, recipe: str) -> Iterator[Line]:
    if recipe in _OF_PICTURES:
        side = image_side(data.side)
        if not data.side:
            why = "Pixels of a side; no image was opened here."
        elif data.side >= _USUAL_SIDE:
            why = "Pixels of a side; the images are large enough for the usual size."
        else:
            why = "Pixels of a side: the images are small, and larger ones only cost more."
        yield Line(key="image-size", value=side, why=why)
        yield Line(
            key="augment", value="none", is_on=False,
            why="The whole image, as it is; for digits, charts and the like. The default takes a "
            "random part, mirrored half of the times.",
        )  # fmt: skip
    places = Topology(Shape((1,)), (machine.num_devices,)).places
    found = num_loaders(-1, places, machine.num_cores, has_gpu=machine.kind == "gpu")
    what = f"{found} for each rank that reads" if found else "none: the model needs the cores"
    yield Line(
        key="loader-workers", value=found, is_on=False,
        why=f"Loading processes; what a run here chooses itself: {what}.",
    )  # fmt: skip
    if data.num_unreadable:
        yield Line(
            key="skip-unreadable", value=True,
            why=f"{data.num_unreadable} of {data.num_opened} images cannot be read, such as "
            f"{data.unreadable!r}; without this the first of them ends the run.",
        )  # fmt: skip
    if not data.has_val:
        yield Line(key="validate", value=False, why="There is no part for validation.")


def image_side(side: int) -> int:
    """The size to train at, for images whose shorter side is `side` pixels; 0: unknown."""
    if not side or side >= _USUAL_SIDE:
        return _USUAL_SIDE
    return max(32, round(side / 32) * 32)


def _nodes(machine: MachineLook) -> Iterator[Line]:
    if machine.kind == "gpu":
        yield Line(
            key="precision", value="bfloat16", is_on=False,
            why="About twice as fast on GPUs from A100 on; the result differs by rounding.",
        )  # fmt: skip
    else:
        yield Line(
            key="devices", value="cpu", is_on=False,
            why=f"No GPU is seen here: ranks run on {machine.num_devices} CPU slots, one per core.",
        )  # fmt: skip
    if machine.in_job:
        yield Line(key="nnodes", value="1", why="The batch system says it.", is_on=False)
        return
    yield Line(
        key="nnodes", value="1:4", is_on=False,
        why="Fewest and most nodes, each of which runs the same command; any may come and go.",
    )  # fmt: skip
    yield Line(
        key="rdzv-endpoint", value=f"{machine.name}:29400", is_on=False,
        why="Where they meet: one of them, or several in order, by a name that all know.",
    )  # fmt: skip


def _run(machine: MachineLook) -> Iterator[Line]:
    if machine.is_shared:
        where = f"This folder is on {machine.file_system}, which other machines may see, too."
    elif machine.file_system:
        where = f"This folder is on {machine.file_system}, which only this machine sees."
    else:
        where = "Which file system this folder is on is not known."
    yield Line(
        key="run-dir", value="runs/first", is_on=False,
        why="Each start has a new folder in runs/. With a name here, another start resumes. "
        f"Several nodes need one that all of them see. {where}",
    )  # fmt: skip
    yield Line(
        key="checkpoint-steps", value=1000, is_on=False,
        why="Steps between checkpoints; there is one at each epoch's end. What a crash of a "
        "process loses is kept in memory besides.",
    )  # fmt: skip
    yield Line(key="seed", value=0, why="Of all that is random.", is_on=False)
