"""From the recipe to this rank's data and its part of the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bundlerun.launcher.agreement.continuation import has_begun
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import BUILDING, check_adapters
from bundlerun.launcher.models.user_file import users_code
from bundlerun.launcher.models.weight_files import source_of
from bundlerun.launcher.run_folder.paths import run_paths
from bundlerun.splits.cutter import NoExample
from bundlerun.splits.meta import build_on_default_device
from bundlerun.splits.models import make_stages
from bundlerun.splits.modes import modes_kept
from bundlerun.splits.replay.stage import ReplayStage
from bundlerun.splits.sources.build import check_importable
from bundlerun.splits.weights.freezing import freeze
from bundlerun.splits.weights.loading import Initial
from bundlerun.splits.weights.lora import Lora, add_adapters
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.data.readers import Source, check_samples, num_samples_of, read_first
from bundlerun.workers.model.blank import build_blank
from bundlerun.workers.model.division import division_lines
from bundlerun.workers.model.example import NUM_SAMPLES, Example, describe, example_of
from bundlerun.workers.model.late import Late, build_late
from bundlerun.workers.model.memory_format import check_has_images
from bundlerun.workers.model.trial import Subject
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.recipe import BUILT_IN, DataInfo, DataSets, Recipe, model_inputs, shapes_vary

log = logging.getLogger(__name__)


def open_data(recipe: Recipe, session: Session) -> tuple[DataInfo, DataSets | None]:
    """The sizes of the data on every rank, and the samples on stage 0 (I4).

    Collective: the bundle.

    Raises:
        ConfigError: the data set is empty, or gives no samples.
    """
    data = recipe.open_data() if session.place.stage == 0 else None
    own = None
    if data is not None:
        check_samples(data)
        if session.place.bundle == 0 and session.place.replica == 0:
            for remark in data.remarks:
                log.info("%s", remark)
        # Only numbers and names cross to the other stages (I4).
        own = asdict(info_of(data))
    info = DataInfo(**session.gather_bundle(own)[0])
    if not info.num_train:
        raise ConfigError("the training data is empty; give DATA with at least one sample")
    return info, data


def info_of(data: DataSets) -> DataInfo:
    """What every rank has to know of data."""
    val = Source.val(data)
    return DataInfo(
        num_train=num_samples_of(Source.train(data)),
        num_val=0 if val is None else num_samples_of(val),
        num_outputs=data.num_outputs,
        about=checked_about(data.about),
    )


def checked_about(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be known of the data, as JSON gives it back.

    Raises:
        ConfigError: JSON cannot say it.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(about, allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"DataSets(about=...) is not what JSON can say: {exc}; give texts, numbers, lists and "
            "dicts of them"
        ) from exc
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CutModel:
    """A freshly initialised model, and its stages.

    Args:
        model: as the recipe has built it.
        stages: of it.
        chunks_per_stage: of the model.
        cuts: names at which it was cut; none, where it came cut or is whole.
        remarks: lines about it that are logged once.
    """

    model: nn.Module | Sequence[nn.Module]
    stages: Sequence[nn.Module]
    chunks_per_stage: int
    cuts: tuple[str, ...] = ()
    remarks: Sequence[str] = ()

    def subject(self) -> Subject:
        """It, to be compared with its stages."""
        whole = self._whole
        return Subject(whole=whole, stages=self.stages, chunks_per_stage=self.chunks_per_stage)

    def initial(self, config: TrainConfig, info: DataInfo) -> Initial | None:
        """The weights that a new run begins with; None: it has none.

        Raises:
            ConfigError: they cannot be read, or are of another model.
        """
        source = source_of(config.init_from, config.model, config.recipe)
        if not source:
            return None
        return Initial(
            self._whole,
            source,
            f"--model {config.model}" if config.recipe in BUILT_IN else "the recipe's model",
            num_outputs=info.num_outputs,
            new_head=config.new_head,
        )

    @property
    def _whole(self) -> nn.Module:
        (whole,) = make_stages(self.model, cut=(), num_stages=1)
        return whole


def make_stage(config: TrainConfig, recipe: Recipe, info: DataInfo, stage: int) -> nn.Module:
    """One stage of the freshly initialised model; see `cut_model`."""
    return cut_model(config, recipe, info).stages[stage]


def cut_model(
    config: TrainConfig,
    recipe: Recipe,
    info: DataInfo,
    *,
    is_loaded_later: bool = False,
    only: int | None = None,
    example: Example = Example(),  # noqa: B008 (frozen)
) -> CutModel:
    """The freshly initialised model in stages; the same numbers on every rank (seeded).

    Args:
        config: of the run.
        recipe: has the model.
        info: sizes of the data.
        is_loaded_later: leave out the initialisation, as all of the state is going to be loaded.
        only: the stage whose parameters are used; None: all. Those of others may have no numbers.
        example: what the model is called with.

    Raises:
        ConfigError: the model or a cut is unknown, or they do not fit --shape and --chunks; or the
            model has no images to be in a --memory-format.
    """
    seed = mix_seed(config.seed)
    build = partial(_build, recipe, info)
    late: Late | None = None
    if is_loaded_later:
        # The optimizer is tried on it, too: one that copies parameters would copy nothing.
        model = build_blank(build, seed, then=partial(_try_optimizer, recipe))
    elif only is not None and config.shape.num_stages > 1:
        model, late = build_late(build, seed)
    else:
        # The same numbers on every rank, and the same as in an unsplit model.
        torch.manual_seed(seed)
        model = build_on_default_device(build)
    _refuse_lazy(model)
    check_has_images(config.memory_format, model)
    # Before the cut: the stages take over what a model sets in each mode.
    remarks = []
    if config.lora:
        model, said = add_adapters(model, lora_of(config))
        remarks.append(said)
    remarks += [freeze(model, config.freeze)] if config.freeze else []
    _refuse_untrained(model)
    cuts: list[str] = []
    stages = _stages(config, model, example, remarks.append, cuts.extend)
    if late is not None and only is not None and not late.fill(stages[only]):
        return cut_model(config, recipe, info, example=example)
    if config.compile != "off" and any(isinstance(stage, ReplayStage) for stage in stages):
        remarks.append(
            f"--compile={config.compile} compiles no stage that is cut by replay: each runs the "
            "model's own Python, and leaves it in the middle; --cutter graph has stages that can be"
        )
    return CutModel(
        model=model,
        stages=stages,
        chunks_per_stage=config.chunks,
        cuts=tuple(cuts),
        remarks=remarks,
    )


def lora_of(config: TrainConfig) -> Lora:
    """The adapters that a configuration asks for.

    Raises:
        ConfigError: no package makes them.
    """
    check_adapters(config.lora)
    alpha = config.lora_alpha or 2.0 * config.lora
    return Lora(rank=config.lora, alpha=alpha, targets=config.lora_targets)


def _refuse_untrained(model: nn.Module | Sequence[nn.Module]) -> None:
    roots = [model] if isinstance(model, nn.Module) else model
    if not any(map(_is_trained, roots)):
        raise ConfigError(
            "the model has no parameter that is trained: each has requires_grad=False, or there is "
            "none; let build return a model with some"
        )


def _is_trained(root: nn.Module) -> bool:
    if any(p.requires_grad for p in root.parameters()):
        return True
    with modes_kept(root):
        root.train()  # which may thaw some
        return any(p.requires_grad for p in root.parameters())


def _refuse_lazy(model: nn.Module | Sequence[nn.Module]) -> None:
    """Raises ConfigError for parameters that have no shape before the first forward."""
    for module in [model] if isinstance(model, nn.Module) else model:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if is_lazy(tensor):
                raise ConfigError(
                    f"{name!r} of the model has no shape yet (a lazy module); give its sizes, or "
                    "call the model once with a sample where it is built"
                )


def _stages(
    config: TrainConfig,
    model: nn.Module | Sequence[nn.Module],
    example: Example,
    tell: Callable[[str], object],
    tell_cuts: Callable[[tuple[str, ...]], object] = lambda _: None,
) -> Sequence[nn.Module]:
    try:
        stages: Sequence[nn.Module] = make_stages(
            model,
            cut=config.cut,
            num_stages=config.shape.num_stages,
            chunks_per_stage=config.chunks,
            model_name=config.model,
            widths=config.shape.widths,
            inputs=example.inputs,
            cutter=config.cutter,
            tell=tell,
            tell_cuts=tell_cuts,
        )
    except NoExample:
        raise
    except ConfigError as exc:
        if config.shape.num_stages == 1 or config.cut:
            raise
        # Nobody has asked for a cut there, nor perhaps for several stages.
        raise ConfigError(f"{exc}; or train the model uncut, with --shape 1") from exc
    return stages


def _try_optimizer(recipe: Recipe, model: nn.Module | Sequence[nn.Module]) -> None:
    """Lets the recipe make an optimizer, which may read the parameters, such as to keep a copy."""
    for module in [model] if isinstance(model, nn.Module) else model:
        with modes_kept(module):
            module.train()  # as where it is trained: that may say which parameters are
            recipe.optimizer(module.named_parameters())


def _build(recipe: Recipe, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
    with users_code("the model's own code"):
        return recipe.model(info)


def check_stages(config: TrainConfig, recipe: Recipe) -> None:
    """Raises ConfigError where the model cannot be as asked; makes no parameter.

    Nothing is said of a model that depends on data which is not open yet, and has no
    `num_outputs`, nor of one that is cut by what it is called with: its ranks say it.
    """
    is_whole = config.shape.num_stages == 1 and not config.cut
    begins_with = source_of(config.init_from, config.model, config.recipe)
    is_plain = config.memory_format != "channels_last" and not begins_with
    if is_whole and is_plain and not config.freeze and not config.lora:
        # Not made, which takes its time; but each rank would say that it cannot be imported.
        if config.recipe in BUILDING:
            check_importable(config.model)
        return
    count = getattr(recipe, "num_outputs", None)
    # A model that asks for more than the number of outputs cannot be checked yet.
    info = _Foreseen(count() if count else config.num_classes)
    # Shapes only: a check of the cut needs no memory for parameters.
    with torch.device("meta"), suppress(_NotOpenYet, NoExample):
        made = cut_model(config, recipe, info)
        if begins_with and not has_begun(run_paths(config.run_dir)):
            made.initial(config, info)


class _NotOpenYet(BaseException):
    """No Exception, as the user's code is not to handle it."""


class _Foreseen(DataInfo):
    """What is known of data that nobody has opened; reading more of it raises _NotOpenYet."""

    def __init__(self, num_outputs: int) -> None:
        if num_outputs:
            object.__setattr__(self, "num_outputs", num_outputs)

    def __getattr__(self, name: str) -> int:
        raise _NotOpenYet(name)


def foreseen_division(config: TrainConfig, recipe: Recipe) -> list[str]:
    """How a run would divide the work among its stages: reads two samples, makes no parameter.

    Raises:
        ConfigError: the data cannot be read, or the model cannot be cut as asked.
    """
    example, info = example_inputs(config, recipe)
    with torch.device("meta"):
        model = unfilled_model(recipe, info)
        told: list[str] = []
        stages = _stages(config, model, example, told.append)
        return [*told, *division_lines(config, stages, example)]


def example_inputs(config: TrainConfig, recipe: Recipe) -> tuple[Example, DataInfo]:
    """What the model is called with, from two samples of the data, and the sizes of the data.

    Raises:
        ConfigError: the data cannot be read.
    """
    data = recipe.open_data()
    check_samples(data)
    batch, messages = read_first(data, config, NUM_SAMPLES)
    if batch is None:
        raise ConfigError(messages[0])
    inputs = model_inputs(recipe, batch.inputs)
    return example_of(describe(inputs, varies=shapes_vary(recipe))), info_of(data)


def unfilled_model(recipe: Recipe, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
    """The model on the default device, which is to be meta."""
    return build_on_default_device(partial(_build, recipe, info))
