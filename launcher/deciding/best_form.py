"""What is to travel between nodes, as foreseen: all as it is, unless a loss is allowed and pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bundlerun.launcher.choices import WITHOUT_EXCHANGE
from bundlerun.launcher.deciding.shown import seconds
from bundlerun.launcher.layout.exchange_form import EXACT, SHORTER, ExchangeForm
from bundlerun.launcher.planning.candidate import Candidate
from bundlerun.launcher.planning.outlook import Outlook

_PAYS = 0.97
"""A step in a shorter form over an exact one, at most: less is not sure enough to round for."""


def best_form(
    outlook: Outlook,
    plans: Sequence[Candidate],
    forms: Sequence[ExchangeForm],
    *,
    may_lose: bool,
) -> tuple[ExchangeForm, str]:
    """The form, and why, in a line.

    Args:
        outlook: of the machines and of what is wanted.
        plans: the best ones in the exact form.
        forms: shorter ones that there are, those that lose least first.
        may_lose: whether the user allows a loss.
    """
    if not forms:
        return EXACT, "--exchange auto: all as it is; such gradients have no shorter form"
    exact_s = min(_step_s(outlook, plan, EXACT) for plan in plans)
    found = {form: min(_step_s(outlook, plan, form) for plan in plans) for form in forms}
    # Of forms that are as fast the one that loses least.
    best = next(form for form in forms if found[form] <= min(found.values()) * (2 - _PAYS))
    told = f"{seconds(found[best])} a step foreseen, {seconds(exact_s)} in float32"
    if found[best] > _PAYS * exact_s:
        return EXACT, f"--exchange auto: all in float32; a shorter form saves nothing: {told}"
    if not may_lose:
        return EXACT, (
            f"--exchange auto: all in float32; {best} would be faster ({told}), and "
            "--exchange-loss ok would allow it"
        )
    return best, f"--exchange auto: {best}: {told}"


def forms_for(kind: str, precision: str) -> Sequence[ExchangeForm]:
    """The shorter forms of float32 gradients on a kind of device."""
    if precision == "float64":
        return ()
    # NCCL, which may carry them between GPUs, knows no blocks.
    return [form for form in SHORTER if form.can_add or kind != "gpu"]


def _step_s(outlook: Outlook, plan: Candidate, form: ExchangeForm) -> float:
    """Of a plan, by a way to sum that has the form."""
    if not form.is_exact and plan.sync in WITHOUT_EXCHANGE:
        plan = replace(plan, sync="local-master")
    return replace(outlook, request=replace(outlook.request, exchange=form)).forecast(plan).step_s
