"""Evaluates a checkpoint on the validation part of data, as the run itself would after an epoch.

One process without a launcher does it unsplit; under an agent each rank has its stage. The same
loader, micro-batches, arithmetic and sums as in training: where the layout is the same, so is each
bit of the result.

    RUN_DIR/evaluation.json    says which checkpoint; RUN_DIR is a folder made for this
    RUN_DIR/evaluated.json     loss and metrics, by the rank that has them
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from bundlerun.launcher.agent.limits import raise_open_files
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import ConsoleHandler
from bundlerun.launcher.errors import EXIT_DONE, BundleError, ConfigError
from bundlerun.launcher.process import leave
from bundlerun.launcher.run_folder.checkpoints import (
    MODEL,
    Checkpoint,
    read_manifest,
    read_tensors,
)
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.device.start import DeviceStart
from bundlerun.workers.device.switches import prepare
from bundlerun.workers.model.example import share_example
from bundlerun.workers.model.stage import cut_model, open_data
from bundlerun.workers.rank.arrival.open_store import open_store
from bundlerun.workers.rank.arrival.session import Session, arrive, join
from bundlerun.workers.rank.cores import take_cores
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.memory_guard import MemoryGuard
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.rank.said_once import said_once
from bundlerun.workers.recipe import DataInfo, DataSets, load_recipe
from bundlerun.workers.state.named import load_state_tensors, stage_names
from bundlerun.workers.step import StepSums, with_raw
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.trainer import Trainer
from bundlerun.workers.use.classes import in_order_of

log = logging.getLogger(__name__)


def preflight(config: TrainConfig) -> None:
    """Raises BundleError for what can be known to fail before any rank meets another."""
    load_recipe(config).check()


def main(argv: Sequence[str]) -> int:
    """Runs this rank's part and returns the exit code, as its agent is to see it."""
    logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()], force=True)
    try:
        evaluate(read_train_argv(argv, os.environ).value, os.environ)
    except BundleError as exc:
        text = f"error: {exc}"
        with said_once(text, os.environ) as is_first:
            if is_first:
                log.error("%s", text)
        return exc.exit_code
    return EXIT_DONE


def alone(config: TrainConfig) -> None:
    """Does all of it in this process.

    Raises:
        BundleError: what the user can act on.
    """
    preflight(config)
    evaluate(config, {})


def evaluate(config: TrainConfig, environ: Mapping[str, str]) -> None:
    """Does the part of one rank; `environ` is what its agent told it, nothing: there is none.

    Collective: every rank.
    """
    env = RankEnv.from_mapping(environ)
    raise_open_files()
    env = take_cores(config, env)
    prepare(config)
    start = DeviceStart(env.local_rank)
    arrival = arrive(config, env, open_store(env, config.timeout_s), start)
    if arrival.place.is_spare:
        return
    session = join(config, arrival, ways_of(config, arrival).members)
    with ExitStack() as stack:
        sums, num_samples = _evaluated(config, session, stack)
        if session.is_reporter:
            found = {**_plain(sums), "num_samples": num_samples}
            write_text(RunPaths(Path(config.run_dir)).evaluated, json.dumps(found) + "\n")
    session.close()


def _evaluated(config: TrainConfig, session: Session, stack: ExitStack) -> tuple[StepSums, int]:
    shares_gpu = session.arrival.shares_gpu
    with MemoryGuard(config, session.device, shares_gpu=shares_gpu):
        checkpoint = _asked_for(RunPaths(Path(config.run_dir)))
        recipe = load_recipe(config)
        info, data = _numbered_alike(checkpoint, *open_data(recipe, session))
        if not info.num_val:
            raise ConfigError("there is nothing to evaluate on: DATA has no validation samples")
        feed = Feed(config, session, info, data)
        stack.callback(feed.close)
        example = share_example(feed, session, recipe, config.shape.num_stages)
        cut = cut_model(config, recipe, info, is_loaded_later=True, example=example)
        stage = cut.stages[session.place.stage]
        trainer = Trainer(config, session, stage, recipe, Meters.of(session.device))
        stack.callback(trainer.close)
        _load(trainer, checkpoint)
        sums = _pass(trainer, feed)
        if trainer.average.is_kept:
            with trainer.average.in_place():
                sums = with_raw(_pass(trainer, feed), sums)
        return sums, info.num_val


def _load(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Weights, and the average of them where the run has one; nothing of the optimizer."""
    stage = trainer.stage
    names = [n for n in stage_names(stage, checkpoint.weight_map) if n.startswith(MODEL)]
    load_state_tensors(stage, None, read_tensors(checkpoint, names))
    trainer.average.load(read_tensors(checkpoint, trainer.average.names(checkpoint.weight_map)))


def _pass(trainer: Trainer, feed: Feed) -> StepSums:
    works, batches = feed.validation()
    sums = trainer.evaluate(works, batches, is_told=lambda: False)
    assert sums is not None, "nobody has told it to stop"
    return sums


def _asked_for(paths: RunPaths) -> Checkpoint:
    asked: dict[str, str] = json.loads(paths.evaluation.read_text(encoding="utf-8"))
    return read_manifest(Path(asked["checkpoint"]))


def _numbered_alike(
    checkpoint: Checkpoint, info: DataInfo, data: DataSets | None
) -> tuple[DataInfo, DataSets | None]:
    """Data whose classes have the numbers that the model has learnt.

    Raises:
        ConfigError: the data has classes that the model does not know.
    """
    known, found = checkpoint.about.get("classes"), info.about.get("classes")
    if not known or not found or list(known) == list(found):
        return info, data
    if data is not None and data.val is not None:
        data = replace(data, val=in_order_of(known, found, data.val))
    return replace(info, num_outputs=max(info.num_outputs, len(known))), data


def _plain(sums: StepSums) -> dict[str, Any]:
    """What JSON can say of it."""
    values = asdict(sums)
    return {
        "loss": _number(values["loss"]),
        "metrics": {name: _number(value) for name, value in values["metrics"].items()},
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    import sys

    leave(record(main)(sys.argv[1:]) or EXIT_DONE)
