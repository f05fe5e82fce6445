"""Forecasts of steps against steps of the trainer: several models, shapes, schedules and links.

Passes sleep, as those of a device do that is no part of the processor. Messages, sums, the
optimizer and all between are real. What is foreseen comes from a profile of the same model, what
the processor takes for copies and messages, and the optimizer's time.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import torch
from torch import Tensor

from benchmarks.cluster.forked import TIMEOUT_S, Seat, run_ranks
from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.planning.settings import FAST, INPUT, NUM_CLASSES, Case, Model, cases
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.training import FixedSteps
from bundlerun.launcher.planning.candidate import Candidate, Forecast, Request
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.forecast import foresee
from bundlerun.launcher.planning.model_costs import ModelCosts, Profile, ProfileKey, UpdateCosts
from bundlerun.workers.data.samples import Batch

CLAIM = "a forecast is within 5 % of the measured step (median), and within 12 % (worst)"
NUM_ROUNDS = 2
NUM_TIMES, NUM_STEPS = 3, 3
"""A time is of so many steps that follow each other."""
MEDIAN, WORST = 0.05, 0.12
_MIB = 1 << 20

skip_reason = why_not


def run(options: Options) -> None:
    """Foresees and measures, setting by setting."""
    wanted = [case for case in cases() if options.wants(case.name)]
    measured: dict[str, list[float]] = {case.name: [] for case in wanted}
    foreseen: dict[str, list[Forecast]] = {case.name: [] for case in wanted}
    for _ in range(options.rounds_or(NUM_ROUNDS)):
        host = measure_host()
        print(f"{host}", flush=True)
        costs: dict[tuple[Model, int], ModelCosts] = {}
        for case in wanted:
            steps, update_s_per_byte = _measure(case)
            measured[case.name] += steps
            model = case.model, case.shape.num_stages
            if model not in costs:
                costs[model] = case.model.measured(case.shape.num_stages)
            found = _foresee(case, costs[model], host, update_s_per_byte)
            foreseen[case.name].append(found)
            took = median(steps)
            print(f"{case.name}: {took:.3f} s, foreseen {found.step_s:.3f}", flush=True)
    rows, results, errors = [], [], []
    for name, steps in measured.items():
        took, expected = median(steps), median(each.step_s for each in foreseen[name])
        terms = {
            term.value: fmean(each.terms[term] for each in foreseen[name])
            for term in foreseen[name][0].terms
        }
        errors.append(abs(expected / took - 1))
        limit = foreseen[name][0].limit.value
        rows.append((name, 1000 * took, 1000 * expected, f"{expected / took - 1:+.1%}", limit))
        results.append(
            {
                "setting": name,
                "measured_s": steps,
                "foreseen_s": [each.step_s for each in foreseen[name]],
                "terms": terms,
                "error": errors[-1],
            }
        )
    print_table(("setting", "measured ms", "foreseen ms", "off", "limited by"), rows)
    checks = [
        Check("median error, at most", median(errors), MEDIAN),
        Check("worst error, at most", max(errors), WORST),
    ]
    options.record("forecast", {"settings": results}, checks)


def _foresee(case: Case, costs: ModelCosts, host: Host, update_s_per_byte: float) -> Forecast:
    num_stages = case.shape.num_stages
    candidate = Candidate(
        shape=case.shape,
        cuts=tuple(case.model.blocks * stage - 1 for stage in range(1, num_stages)),
        schedule=case.schedule,
        sync=case.sync,
        samples=1,
    )
    kind = NodeKind(name="host", count=len(case.per_host), devices=case.per_host[0], host=host)
    rate = 1 / Wire(mbit_per_s=case.mbit_per_s).seconds(1)
    # All hosts have the cores of this machine, and passes that sleep take none of them.
    between = Link(bytes_per_s=rate, latency_s=100e-6)
    cluster = Cluster(kinds=(kind,), between=between, is_one_machine=True)
    key = ProfileKey(model="sleeping", device="none", versions="", precision="float32")
    update = UpdateCosts(update_s_per_byte=update_s_per_byte)
    profile = Profile(key=key, by_samples=(costs,), update=update)
    return foresee(profile, candidate, cluster, Request(batch_size=case.microbatches))


# --- on the hosts


def _measure(case: Case) -> tuple[list[float], float]:
    """Seconds of a step, some times; and what the optimizer took per byte of parameters."""
    os.environ |= case.variables
    with (
        tempfile.TemporaryDirectory(prefix="bundlerun-") as folder,
        open_hosts(len(case.per_host), Wire(mbit_per_s=case.mbit_per_s)) as hosts,
    ):
        answers = run_ranks(hosts, case.per_host, partial(_step_rank, case, folder))
    times = list(zip(*(answer["ended"] for answer in answers), strict=True))
    ends = [max(of_ranks) for of_ranks in times]
    steps = [(after - before) / NUM_STEPS for before, after in pairwise(ends)]
    return steps, median(answer["update_s_per_byte"] for answer in answers)


def _step_rank(case: Case, folder: str, seat: Seat) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch((torch.zeros(INPUT),), _target(generator), 0) for _ in range(case.microbatches)
    ]
    steps = FixedSteps(seat, case.config(folder), "forecast", batches)
    for _ in range(2):
        steps.step()
    # Without a wait between: a step may begin while others still end the one before.
    ended = [time.perf_counter()]
    update_s = steps.seconds("optimizer")
    for _ in range(NUM_TIMES):
        for _ in range(NUM_STEPS):
            steps.step()
        ended.append(time.perf_counter())
    # A rank that is gone takes with it what it has not sent yet: its last gradient.
    seat.barrier.wait(TIMEOUT_S)
    update_s = (steps.seconds("optimizer") - update_s) / (NUM_TIMES * NUM_STEPS)
    return {"ended": ended, "update_s_per_byte": update_s / steps.trained_bytes}


def _target(generator: torch.Generator) -> Tensor:
    return torch.randint(NUM_CLASSES, (1,), generator=generator)


def measure_host() -> Host:
    """What the processor takes for a byte that is added up, or sent to another host."""
    with open_hosts(2, Wire(mbit_per_s=FAST)) as hosts:
        answers = run_ranks(hosts, (1, 1), _host_rank)
    sent = fmean(answer["send_s_per_byte"] for answer in answers)
    copied = fmean(answer["copy_s_per_byte"] for answer in answers)
    # Each end both sends and receives.
    return Host(
        cores=os.cpu_count() or 1,
        passes_apart=True,
        copy_s_per_byte=copied,
        send_s_per_byte=sent / 2,
        message_s=fmean(answer["message_s"] for answer in answers),
    )


def _host_rank(seat: Seat) -> dict[str, float]:
    seat.join_torch()
    copy_s_per_byte = _copy_cost()
    own, other = torch.ones(16 * _MIB // 4), torch.ones(16 * _MIB // 4)
    pieces = list(zip(own.split(_MIB // 4), other.split(_MIB // 4), strict=True))
    peer = 1 - seat.env.rank
    sends, messages = [], []
    for _ in range(3):
        start = time.process_time()
        for a, b in pieces:
            _swap(a, b, peer)
        sends.append((time.process_time() - start) / (16 * _MIB))
        start = time.process_time()
        for _ in range(50):
            _swap(own[:1], other[:1], peer)
        messages.append((time.process_time() - start) / 100)
    return {
        "copy_s_per_byte": copy_s_per_byte,
        "send_s_per_byte": min(sends),
        "message_s": min(messages),
    }


def _copy_cost() -> float:
    """Seconds per byte that is added up, of gradients that are in no cache."""
    one, other, total = (torch.ones(64 * _MIB // 4) for _ in range(3))
    found = []
    for _ in range(3):
        start = time.thread_time()
        torch.add(one, other, out=total)
        found.append((time.thread_time() - start) / total.nbytes)
    return min(found)


def _swap(own: Tensor, other: Tensor, peer: int) -> None:
    works = [torch.distributed.irecv(other, peer), torch.distributed.isend(own, peer)]
    for work in works:
        assert work is not None
        work.wait()
