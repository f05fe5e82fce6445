"""One rank's part of its bundle, made of the stage and of what happens around its forwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.splits.stage import Forward
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.forwards import forwards_of
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.pipeline.wires import Wires
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import Recipe


def make_bundle(
    config: TrainConfig,
    session: Session,
    stage: nn.Module,
    recipe: Recipe,
    arithmetic: Arithmetic,
    statistics: StatisticsPool,
    forward_state: ForwardState,
    meters: Meters,
    around: Callable[[Sequence[Forward]], Sequence[Forward]],
) -> Bundle:
    """Makes it.

    Args:
        config: of the run.
        session: the round that this rank has joined.
        stage: this rank's part of the model, on its device.
        recipe: gives loss and metrics.
        arithmetic: in which the stage computes.
        statistics: take those of each training forward.
        forward_state: sees what forwards write.
        meters: gets the time of each phase.
        around: what is put around the forwards of the chunks, outermost.
    """
    number, device = session.place.stage, session.device
    pipeline = Pipeline.of(session.topology, config.schedule)
    count = math.ceil(config.num_microbatches / session.topology.num_bundles)  # or about that
    is_recomputed = config.recomputes(number, max_in_flight(pipeline.order(number, 0, count)))
    within = statistics, forward_state, device
    return Bundle(
        wires=Wires(
            session.topology,
            session.place,
            session.groups.links,
            pipeline,
            device,
            meters.sheet,
        ),
        pipeline=pipeline,
        stage=stage,
        forwards=around(forwards_of(stage, config, *within, recomputes=is_recomputed)),
        recipe=recipe,
        arithmetic=arithmetic,
        meters=meters,
    )
