"""A configuration in the planner's words: what is wanted, and the plan that it is."""

from __future__ import annotations

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.models.weight_files import how_read, source_of
from bundlerun.launcher.planning.candidate import Candidate, Request


def wanted(config: TrainConfig) -> Request:
    """What no planner chooses; all that it may choose is left open but the chunks."""
    return Request(
        batch_size=config.batch_size,
        chunks=config.chunks,
        exchange=config.exchange_form,
        bucket_bytes=round(config.bucket_mb * 1e6),
        has_snapshot=config.snapshot == "on",
        keeps_verified=config.verify_steps >= 0,
        snapshot_copies=max(1, config.num_copies),
        num_steps=config.max_steps,
        begins_with=how_read(source_of(config.init_from, config.model, config.recipe)),
    )


def candidate_of(
    config: TrainConfig, topology: Topology, cuts: tuple[int, ...], samples: int
) -> Candidate:
    """The plan that a run goes by.

    Args:
        config: of the run.
        topology: of its ranks.
        cuts: numbers of the profile's boundaries.
        samples: of a micro-batch.
    """
    pipeline = Pipeline.of(topology, config.schedule)
    count = divided_up(config.batch_size // samples, topology.num_bundles)
    recompute = {
        stage
        for stage in range(topology.num_stages)
        if config.recomputes(stage, max_in_flight(pipeline.order(stage, 0, count)))
    }
    return Candidate(
        shape=topology.shape,
        cuts=cuts,
        schedule=pipeline.schedule,
        # Of what is not measured yet, the one that needs the most memory.
        sync="local-master" if config.sync == "auto" else config.sync,
        samples=samples,
        chunks=topology.chunks_per_stage,
        recompute=frozenset(recompute),
    )
