"""What is trained, in batches of which size, by bundles of which shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bundlerun.launcher.choices import CutterChoice, ScheduleChoice, Share
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.microbatch import (
    LEAST_SAMPLES,
    MOST_ON_GPUS,
    MOST_SAMPLES,
    default_samples,
    divisors,
)
from bundlerun.launcher.layout.shape import AUTO, Shape
from bundlerun.launcher.models.name import OF_IMAGES
from bundlerun.launcher.options.bounds import at_least
from bundlerun.launcher.options.declared import Reader, option, text_list

_WHAT = "what to train"
_BATCH = "batch and bundles"


# Its methods are made for the class of all options, once; made for each part, `--help` waits.
@dataclass(frozen=True, slots=True, kw_only=True, init=False, repr=False, eq=False)
class WorkConfig:
    """The part of the training configuration that decides who does what in a step.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    data: str = ""

    recipe: str = option(
        OF_IMAGES,
        "image-classification, segmentation, detection, language-model, sequence-classification, "
        "characters, or your own path/to/file.py",
        group=_WHAT,
        common=True,
    )
    model: str = option(
        "resnet18",
        "torchvision model, torchvision:NAME of any task, timm:NAME, hf:FOLDER with a config.json, "
        "or your own path/to/file.py:build or package.module:build",
        group=_WHAT,
        kept=True,
        common=True,
    )
    cut: tuple[str, ...] = option(
        (),
        "where each stage after the first begins: module or node names (layer3.10), "
        "a named cut of the family, a number of equal parts, or auto: by measured times",
        group=_WHAT,
        parse=Reader(text_list, metavar="NAME[,...]|N|auto"),
    )
    cutter: CutterChoice = option(
        "auto",
        "how the model is cut: graph traces it, replay runs its own Python on every stage (auto: "
        "graph where the model traces and divides well)",
        group=_WHAT,
        choices=get_args(CutterChoice),
    )
    num_classes: int = option(
        0, "classes of the model (0: as many as the data has)", group=_WHAT, parse=int, kept=True
    )

    init_from: str = option(
        "",
        "weights that a new run begins with: a .safetensors or .pth file, the index of several, a "
        "folder with one, or a run folder; none: not even those in hf:FOLDER",
        group=_WHAT,
        parse=Reader(metavar="FILE|FOLDER|RUN"),
    )
    new_head: str = option(
        "auto",
        "layers that begin anew in spite of --init-from: auto (those with another number of "
        "outputs, and what the file lacks at the model's end), last (the last layer; --new-head "
        "alone), off, or names of modules, --new-head=NAME",
        group=_WHAT,
        parse=Reader(metavar="auto|last|off|NAME[,...]"),
        bare="last",
    )
    freeze: tuple[str, ...] = option(
        (),
        "parameters that are not trained, by their names or those of modules; * stands for "
        "anything; batch norms there keep their statistics",
        group=_WHAT,
        parse=Reader(text_list, metavar="GLOB[,GLOB...]"),
    )
    lora: int = option(
        0,
        "rank of adapters beside linear layers or convolutions, which are trained in place of all "
        "but the last layer (0: none); needs the extra lora",
        group=_WHAT,
        parse=int,
        kept=True,
    )
    lora_alpha: float = option(
        0.0,
        "what adapters give is multiplied by this over their rank (0: twice the rank)",
        group=_WHAT,
        parse=float,
        kept=True,
    )
    lora_targets: tuple[str, ...] = option(
        (),
        "layers that have an adapter, by their names or those of modules, * stands for anything "
        "(default: all linear ones but the last; in a model without any, its convolutions)",
        group=_WHAT,
        parse=Reader(text_list, metavar="GLOB[,GLOB...]"),
        kept=True,
    )

    shape: Shape = option(
        Shape((1, 1)),
        "devices per stage of a bundle; 1 is data parallel only; auto: what is foreseen to be the "
        "fastest; several, with | between them: in each round the one that uses the most of the "
        "devices that are left (default on a single device: 1)",
        group=_BATCH,
        parse=Reader(Shape.parse, "whole numbers separated by commas, or auto", "W[,W...][|...]"),
        common=True,
    )
    batch_size: int = option(
        256,
        "samples of one step, over all bundles",
        group=_BATCH,
        parse=int,
        kept=True,
        common=True,
    )
    microbatch_size: int = option(
        0,
        f"samples of one micro-batch (by default up to {MOST_SAMPLES}, on GPUs {MOST_ON_GPUS}, or "
        f"down to {LEAST_SAMPLES} if many bundles or stages need more micro-batches; fixed at the "
        "first start of a run; 0, if said: the planner's choice)",
        group=_BATCH,
        parse=int,
    )
    chunks: int = option(
        1,
        "chunks of the model per stage, not next to each other; above 1 the passes are interleaved",
        group=_BATCH,
        parse=int,
    )
    schedule: ScheduleChoice = option(
        "auto",
        "order of forward and backward passes in a bundle (by default 1f1b; eager-1f1b if a bundle "
        "spans nodes; interleaved with --chunks; auto, if said: the planner's choice)",
        group=_BATCH,
        choices=get_args(ScheduleChoice),
    )
    share: Share = option(
        "measured",
        "how bundles share the micro-batches: equally, or by the speed measured as the run goes",
        group=_BATCH,
        choices=get_args(Share),
    )

    def __post_init__(self) -> None:
        at_least(1, self, "batch_size", "chunks")
        at_least(0, self, "microbatch_size", "num_classes", "lora", "lora_alpha")
        if not self.lora and (self.lora_alpha or self.lora_targets):
            raise ConfigError(
                "--lora-alpha and --lora-targets are about adapters, and there are none; give "
                "their rank, such as --lora 8"
            )
        if self.microbatch_size and self.batch_size % self.microbatch_size:
            raise ConfigError(
                f"--batch-size {self.batch_size} is not a multiple of --microbatch-size "
                f"{self.microbatch_size}; use one of {divisors(self.batch_size)}"
            )
        if self.new_head != "auto" and not self.init_from and not self.model.startswith("hf:"):
            raise ConfigError(
                f"--new-head {self.new_head} says what begins anew in spite of --init-from, which "
                "is not given; give both, or neither"
            )
        self._check_schedule()
        self._check_cut()

    def _check_schedule(self) -> None:
        if self.schedule == "interleaved" and self.chunks == 1:
            raise ConfigError(
                "--schedule interleaved needs --chunks 2 or more, chunks to change between; "
                "use --chunks 2, or --schedule 1f1b"
            )
        if self.chunks > 1 and self.schedule not in ("auto", "interleaved"):
            raise ConfigError(
                f"--schedule {self.schedule} has no order for --chunks {self.chunks}; use "
                "--schedule interleaved, or --chunks 1"
            )
        if self.chunks > 1 and all(one.num_stages == 1 for one in self.shape.family):
            raise ConfigError(
                f"--chunks {self.chunks} of one stage follow each other on the same device; use "
                "--chunks 1, or a --shape of two stages or more"
            )

    def _check_cut(self) -> None:
        if self.is_for_planner:
            self._check_left_to_planner()
            return
        if self.cut and self.shape.others:
            raise ConfigError(
                f"--cut {','.join(self.cut)} is for one shape, and --shape {self.shape} has "
                f"{len(self.shape.family)}, each with cuts of its own; leave --cut out"
            )
        shape, count = f"--shape {self.shape}", self.num_chunks
        has, parts = f"{shape} has {count}", "stages"
        if self.chunks > 1:
            has, parts = f"{shape} with --chunks {self.chunks} has {count}", "chunks"
        # One number is not a name: it asks for that many equal parts.
        is_number = len(self.cut) == 1 and self.cut[0].isdecimal()
        if self.cut and not is_number and len(self.cut) != count - 1:
            raise ConfigError(
                f"--cut {','.join(self.cut)} makes {len(self.cut) + 1} {parts}, {has}; "
                f"give one cut less than {parts}"
            )
        if is_number and int(self.cut[0]) != count:
            raise ConfigError(
                f"--cut {self.cut[0]} makes {self.cut[0]} equal parts, {has} {parts}; "
                "give the same number"
            )

    def _check_left_to_planner(self) -> None:
        if AUTO in self.cut and len(self.cut) > 1:
            raise ConfigError(
                f"--cut {','.join(self.cut)} has names beside auto; give names, or auto alone"
            )
        if len(self.cut) == 1 and self.cut[0].isdecimal():
            raise ConfigError(
                f"--cut {self.cut[0]} asks for equal parts, and --shape auto chooses how many "
                "there are; use --cut auto, or give a --shape"
            )
        if self.chunks > 1 and self.shape.is_auto:
            raise ConfigError(
                f"--shape auto chooses stages of one chunk, and --chunks is {self.chunks}; leave "
                "--chunks out, or give a --shape"
            )

    @property
    def is_for_planner(self) -> bool:
        """Whether shape or cuts are still to be chosen by the planner."""
        return self.shape.is_auto or AUTO in self.cut

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole model; stages, where each has one."""
        return Chunks(self.shape.num_stages, self.chunks).num_chunks

    @property
    def samples_per_microbatch(self) -> int:
        """Samples of a full micro-batch; the default for one bundle while none is set."""
        if self.microbatch_size:
            return self.microbatch_size
        return default_samples(self.batch_size, self.shape.num_stages, 1)

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of a full step, over all bundles."""
        return self.batch_size // self.samples_per_microbatch
