"""`bundlerun plan --picture` and `--trace`: the plan as a figure, and its step for Perfetto."""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bundlerun.launcher.commands.forecast import Foreseen, foreseen
from bundlerun.launcher.deciding.question import card_of, cluster_here
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.hardware import Devices, read_hardware
from bundlerun.launcher.plan import LaunchPlan
from bundlerun.launcher.planned.memory import device_kind
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.planning.forecast import foreseen_step
from bundlerun.launcher.planning.forecast_words import forecast_line, seconds_text
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.picture.gantt import Gantt, Source, by_schedule
from bundlerun.launcher.planning.picture.nodes import Known, Nodes, nodes_of
from bundlerun.launcher.planning.picture.trace import trace
from bundlerun.launcher.planning.simulation.work import work_of
from bundlerun.launcher.report.figures.drawing import check_drawing
from bundlerun.launcher.report.measured_gantt import as_measured, measured_gantt
from bundlerun.launcher.run_folder.files import write_bytes
from bundlerun.launcher.run_folder.measured import MeasuredRank, read_measured
from bundlerun.launcher.run_folder.paths import RunPaths

if TYPE_CHECKING:
    from bundlerun.launcher.report.figures.plan import Ending

_PICTURE_ENDINGS = (".svg", ".png", ".pdf")
_TRACE_ENDINGS = (".json", ".json.gz")
_TRACED_RANKS = 64
"""That a trace has of one chart: whole bundles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What is to be written; None: nothing."""

    picture: Path | None = None
    trace: Path | None = None

    @property
    def is_asked(self) -> bool:
        """Whether anything is."""
        return self.picture is not None or self.trace is not None


def outputs_of(args: argparse.Namespace) -> Outputs:
    """What `--picture` and `--trace` ask for.

    Raises:
        ConfigError: such a file cannot be made.
    """
    picture = _output("--picture", args.picture, _PICTURE_ENDINGS)
    if picture is not None:
        check_drawing("--picture")
    return Outputs(picture=picture, trace=_output("--trace", args.trace, _TRACE_ENDINGS))


def _output(option: str, text: str | None, endings: Sequence[str]) -> Path | None:
    """The file that an option names; what cannot be written is said before the work."""
    if text is None:
        return None
    path = Path(text)
    if not path.name.endswith(tuple(endings)) or path.name in endings:
        raise ConfigError(f"{option} {text!r} has none of the endings {', '.join(endings)}")
    if path.is_dir():
        raise ConfigError(f"{option} {text!r} is a folder; give a file, such as plan{endings[0]}")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {text!r}: {folder} cannot be written to; give another file")
    return path


def _write(option: str, path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data)
    except OSError as exc:
        raise ConfigError(
            f"cannot write {option} {str(path)!r}: {exc.strerror}; give another file"
        ) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictured:
    """What is drawn of a plan.

    Args:
        plan: it.
        cluster: its nodes.
        forecast: of its step; a sentence: why there is none.
        measured: the ranks of the last measured step; none: there is none.
        remarks: what a reader should know.
    """

    plan: LaunchPlan
    cluster: Cluster
    forecast: Foreseen | str
    measured: Sequence[MeasuredRank]
    remarks: tuple[str, ...]

    @classmethod
    def of(
        cls,
        plan: LaunchPlan,
        *,
        cluster: Cluster | None,
        nodes: Sequence[int],
        forecast: Foreseen | str | None,
        profile: Profile | None,
        environ: Mapping[str, str],
    ) -> Pictured:
        """What there is to see of a plan.

        Args:
            plan: it.
            cluster: what its nodes are; None: as the run folder says, else as this one.
            nodes: devices of each, for machines that are not there; else empty.
            forecast: if it has been made already.
            profile: of the model, if one has been made just now; None: as the run folder says.
            environ: of the process.

        Raises:
            ConfigError: the profile has not the plan's cuts.
        """
        paths = RunPaths(Path(plan.train.value.run_dir))
        remarks: list[str] = []
        where = cluster or _kept_cluster(paths, plan)
        if where is None:
            where = _cluster_like_this(plan, nodes, environ)
            if len(plan.topology.devices_per_node) > 1:
                remarks.append(
                    "links between nodes as fast as the network card of this one says, else "
                    "1 Gbit/s; --cluster FILE has others"
                )
        found = forecast if forecast is not None else foreseen(plan, where, profile)
        measured = list(read_measured(paths))[-1:]
        ranks = measured[0] if measured else []
        if isinstance(found, str):
            remarks = [f"no forecast: {found.removeprefix('none: ')}"]
        else:
            remarks += found.remarks
        remarks += _unlike(plan, ranks)
        return cls(plan=plan, cluster=where, forecast=found, measured=ranks, remarks=tuple(remarks))

    def gantts(self, *, most_ranks: int = 16) -> list[Gantt]:
        """The step, as foreseen and as measured, as far as these are known."""
        found = []
        measured = measured_gantt(self.measured, most_ranks=most_ranks) if self.measured else None
        if isinstance(self.forecast, Foreseen):
            one = self.forecast
            found.append(
                foreseen_step(
                    one.profile, one.candidate, self.cluster, one.request, most_ranks=most_ranks
                )
            )
        elif not list(_unlike(self.plan, self.measured)) and (alone := as_measured(self.measured)):
            found.append(alone)
        else:
            found.append(by_schedule(self.plan.pipeline, self.plan.bundle_microbatches))
        return [*found, measured] if measured else found

    def nodes(self, gantt: Gantt) -> Nodes:
        """What is where, and what is sent in a step; gantt: of that step."""
        train, one = self.plan.config, self.forecast
        node_order: tuple[int, ...] = ()
        known = None
        if isinstance(one, Foreseen):
            node_order = one.candidate.node_order
            costs = one.profile.at(one.candidate.samples)
            work = work_of(costs, one.profile.update, one.candidate, 1 << 30)
            known = Known(
                cuts=one.cut,
                forward_bytes=work.forward_bytes,
                backward_bytes=work.backward_bytes,
                gradient_bytes=tuple(stage.trained_bytes for stage in work.stages),
                egress_bytes=one.forecast.egress_bytes,
                microbatches=gantt.num_microbatches + gantt.num_left_out,
            )
        return nodes_of(
            self.cluster,
            self.plan.topology.shape,
            chunks_per_stage=train.chunks,
            node_order=node_order,
            cuts=train.cut,
            known=known,
        )

    @property
    def title(self) -> str:
        """Of the picture."""
        train, batch = self.plan.config, self.plan.batch
        sync = "" if isinstance(self.forecast, str) else f", {self.forecast.candidate.sync}"
        shape, schedule = self.plan.topology.shape, self.plan.pipeline.schedule
        return (
            f"{train.model}: shape {shape}, {schedule}{sync}, a step of "
            f"{batch.size:,} samples in micro-batches of {batch.samples}"
        )

    def heading(self, gantt: Gantt, first: Gantt) -> str:
        """Of a chart; first: the one above all."""
        shown = gantt.num_microbatches
        of = f"; {shown} of {shown + gantt.num_left_out:,} micro-batches are shown"
        more = of if gantt.num_left_out else ""
        match gantt.source:
            case Source.FORECAST:
                assert isinstance(self.forecast, Foreseen)
                line = forecast_line(self.forecast.forecast, self.plan.batch.size)
                return f"Forecast: {line}{more}"
            case Source.SCHEDULE:
                return (
                    "By the schedule alone: a forward takes 1, a backward 2, all else "
                    f"nothing{more}"
                )
            case Source.AS_MEASURED:
                return (
                    "By plan: passes as long as measured in the mean, all else takes nothing: "
                    f"{seconds_text(gantt.step)}"
                )
            case Source.MEASURED:
                part = ""
                if first.source is Source.FORECAST and first.step and not first.num_left_out:
                    over = gantt.step / first.step - 1
                    much = f"{abs(over):.0%} {'more' if over > 0 else 'less'}"
                    part = f", {1 + over:.1f} times" if over >= 1 else f", {much} than"
                    part += " what was foreseen"
                return f"Measured, step {gantt.step_number + 1:,}: {seconds_text(gantt.step)}{part}"

    @property
    def notes(self) -> Iterator[str]:
        """Yields the lines below the picture."""
        yield (
            "Time 0: all ranks have ended the step before. Thin bars: messages that a rank sends, "
            "sums that it leads on its node (measured: takes part in). Blank: it waits."
        )
        yield from self.remarks


def _kept_cluster(paths: RunPaths, plan: LaunchPlan) -> Cluster | None:
    """That of the run folder, if it is of the plan's nodes."""
    if not paths.cluster.exists():
        return None
    found = read_cluster(paths.cluster)
    return found if found.devices_per_node == plan.topology.devices_per_node else None


def _cluster_like_this(
    plan: LaunchPlan, nodes: Sequence[int], environ: Mapping[str, str]
) -> Cluster:
    launch = plan.launch.value
    found = cluster_here(
        read_hardware(environ),
        Devices(kind=device_kind(plan), count=max(plan.topology.devices_per_node)),
        plan.topology.num_nodes,
        card_of(plan.node.meeting.local_addr if plan.node else launch.local_addr),
        nodes,
    )
    several = len(found.kinds) > 1
    kinds = [
        replace(kind, name=f"node of {kind.devices}" if several else "node") for kind in found.kinds
    ]
    return replace(found, kinds=tuple(kinds))


def _unlike(plan: LaunchPlan, ranks: Sequence[MeasuredRank]) -> Iterator[str]:
    if not ranks:
        return
    first = [rank for rank in ranks if rank.bundle == ranks[0].bundle]
    stages = [rank.stage for rank in first]
    widths = tuple(stages.count(stage) for stage in range(1 + max(stages)))
    # A large bundle does not measure all of its ranks.
    if len(widths) != plan.topology.num_stages or ranks[0].chunks != plan.topology.chunks_per_stage:
        shape = ",".join(map(str, widths))
        yield f"! what was measured had the shape {shape}, the plan has {plan.topology.shape}"


def write_outputs(outputs: Outputs, pictured: Pictured) -> list[str]:
    """Writes what is asked for; the files, and what a reader should know of them.

    Raises:
        ConfigError: a file cannot be written.
    """
    lines = []
    if outputs.picture is not None:
        # Late: it takes most of a second.
        from bundlerun.launcher.report.figures.plan import as_bytes, draw_plan

        gantts = pictured.gantts()
        charts = [(pictured.heading(gantt, gantts[0]), gantt) for gantt in gantts]
        figure = draw_plan(pictured.title, pictured.nodes(gantts[0]), charts, list(pictured.notes))
        ending = cast("Ending", outputs.picture.suffix[1:])
        _write("--picture", outputs.picture, as_bytes(figure, ending))
        lines.append(str(outputs.picture))
    if outputs.trace is not None:
        data = json.dumps(trace(pictured.gantts(most_ranks=_TRACED_RANKS))).encode()
        if outputs.trace.name.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        _write("--trace", outputs.trace, data)
        lines.append(f"{outputs.trace}, for https://ui.perfetto.dev")
    return [*lines, *pictured.remarks]
