"""What a step of a plan is foreseen to take on a cluster, from a profile that was kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bundlerun.launcher.agreement.planner_terms import candidate_of, wanted
from bundlerun.launcher.agreement.profile_key import model_part, profile_key
from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.plan import LaunchPlan
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.candidate import Candidate, Forecast, Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import Profile, ProfileKey
from bundlerun.launcher.planning.outlook import Outlook
from bundlerun.launcher.planning.profile_file import differing
from bundlerun.launcher.run_folder.paths import RunPaths

_SCHEMES: tuple[SchemeName, ...] = ("local-master", "sharded", "flat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """A forecast, and what it holds for.

    Args:
        candidate: the plan.
        cut: names of its cuts.
        forecast: of a step.
        profile, request: that it was made of.
        remarks: what a reader should know of it.
    """

    candidate: Candidate
    cut: tuple[str, ...]
    forecast: Forecast
    profile: Profile
    request: Request
    remarks: tuple[str, ...] = ()


def foreseen(plan: LaunchPlan, cluster: Cluster, profile: Profile | None = None) -> Foreseen | str:
    """The forecast of a plan; or why there is none, in a sentence.

    Args:
        plan: for the nodes of the cluster.
        cluster: these nodes.
        profile: of the model; None: that of the run folder.

    Raises:
        ConfigError: the plan's cuts are not in the profile, or no plan fits.
    """
    train = plan.config
    path = RunPaths(Path(train.run_dir)).model_profile
    found = profile or _profile(path, train)
    if isinstance(found, str):
        return found
    request = _request(plan, _cuts(train, found))
    remarks = _remarks(found, train)
    if train.shape.num_stages > 1 and request.cuts is None:
        where = "cut where it is foreseen to be fastest; --cut says otherwise"
        remarks.append(where)
    best = _best(plan, Outlook(profile=found, cluster=cluster, request=request))
    cut = tuple(found.boundary_names[number] for number in best.candidate.cuts)
    return Foreseen(
        candidate=best.candidate,
        cut=cut,
        forecast=best.forecast,
        profile=found,
        request=request,
        remarks=tuple(remarks),
    )


def _profile(path: Path, train: TrainConfig) -> Profile | str:
    """That of the run folder, if it is of this model; device and data may be of another machine."""
    loaded = profile_file.load(path)
    found = loaded.profile
    if found is None:
        why = loaded.why_not or f"{path} is not there"
        return f"none: {why}; bundlerun profile with the same options makes one"
    own = _own_key(train)
    unlike = model_part(found.key.model) != model_part(own.model)
    if unlike or found.key.precision != own.precision:
        one, other = (f"{key.model}, {key.precision}" for key in (found.key, own))
        return (
            f"none: the profile in {path} is of another model ({differing(one, other)}), and is "
            "ignored; bundlerun profile with the same options makes one"
        )
    return found


def _own_key(train: TrainConfig) -> ProfileKey:
    return profile_key(train, kind="cpu", threads=1, is_estimate=True)


def _remarks(profile: Profile, train: TrainConfig) -> list[str]:
    """Device and data may be those of another machine, which is told."""
    own, key = _own_key(train), profile.key
    found = [
        "operations and bytes were counted, nothing was timed"
        if key.is_estimate
        else f"by passes timed on: {key.device}"
    ]
    if key.model != own.model:
        found.append(f"the profile is of other data: {differing(key.model, own.model)}")
    if key.versions != own.versions:
        versions = differing(key.versions, own.versions)
        found.append(f"! the profile is of another version: {versions}")
    return found


def _cuts(train: TrainConfig, profile: Profile) -> tuple[int, ...] | None:
    """The boundaries that --cut names; None: it leaves that open."""
    is_open = not train.cut or train.cut[0].isdecimal()
    if train.num_chunks > 1 and is_open and profile.cutter is not None:
        return None
    return profile.cut_numbers(train.cut, train.num_chunks)


def _request(plan: LaunchPlan, cuts: tuple[int, ...] | None) -> Request:
    train = plan.config
    return replace(
        wanted(train),
        shape=train.shape,
        cuts=cuts,
        schedule=plan.pipeline.schedule,
        sync=None if train.sync == "auto" else train.sync,
        samples=plan.batch.samples,
        recompute=None if train.recompute != "none" else frozenset(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    candidate: Candidate
    forecast: Forecast


def _best(plan: LaunchPlan, outlook: Outlook) -> _Best:
    request = outlook.request
    if request.cuts is None:
        found = outlook.best().plans[0]
        return _Best(candidate=found.candidate, forecast=found.forecast)
    # All but the sums is said, so that it is told what comes of it, whether it fits or not.
    config = plan.config
    said = candidate_of(config, plan.topology, request.cuts, plan.batch.samples)
    plans = [replace(said, sync=sync) for sync in ([request.sync] if request.sync else _SCHEMES)]
    both = [_Best(candidate=one, forecast=outlook.forecast(one)) for one in plans]
    return min(both, key=lambda one: one.forecast.step_s)
