"""What a recipe says of its metrics: how they are called, and which decides what is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.models.user_file import users_code
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.report.best import LOSS, Best


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The optional attributes of a recipe that are about metrics, checked.

    Args:
        names: what `metrics()` gives in each call, in the order in which it is told; None: the
            recipe does not say, so its first micro-batch does.
        best: which validation is the best.
        shares: metrics that are shares of the samples.
        final: makes what is told of the loss and the means, where the recipe has it.
    """

    names: tuple[str, ...] | None
    best: Best
    shares: tuple[str, ...]
    final: Callable[[float, dict[str, float]], Mapping[str, float]] | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Declared:
        """What the recipe says.

        Raises:
            ConfigError: something that no recipe may say, or that does not fit together.
        """
        names = _names(_said(recipe))
        best = Best.said(getattr(recipe, "best", None))
        shares = getattr(recipe, "shares", ())
        shares = (shares,) if isinstance(shares, str) else tuple(shares)
        final = getattr(recipe, "final_metrics", None)
        # Without names, the first micro-batch says them; `Best.score` finds a wrong `best`.
        if names is not None and final is None:
            for what, used in (("best", [best.name] if best.name else []), ("shares", shares)):
                _check_known(what, used, names)
        return cls(names=names, best=best, shares=shares, final=final)

    def told(self, loss: float, means: dict[str, float]) -> dict[str, float]:
        """The metrics that are told, of their means over the samples.

        Raises:
            ConfigError: the recipe's `final_metrics` gives no floats by name.
        """
        if self.final is None:
            return means
        with users_code("final_metrics() of the recipe"):
            found = self.final(loss, means)
            return {str(name): float(value) for name, value in dict(found).items()}


def _said(recipe: Recipe) -> object:
    """Its `metric_names`; None where those are of a class whose `metrics` it does not have."""
    # A subclass may write its own metrics() and inherit the names of another's. So names count
    # only where they are at least as near in the class order.
    if "metric_names" not in getattr(recipe, "__dict__", {}):
        for kind in type(recipe).__mro__:
            if "metric_names" in vars(kind):
                break
            if "metrics" in vars(kind):
                return None
    return getattr(recipe, "metric_names", None)


def _names(said: object) -> tuple[str, ...] | None:
    if said is None:
        return None
    names = tuple(said) if isinstance(said, (tuple, list)) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"the recipe's metric_names is {said!r}; give a tuple of names, such as "
            'metric_names = ("top1", "top5")'
        )
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(f"the recipe's metric_names has {name!r} twice; name it once")
        if name == LOSS:
            raise ConfigError(
                f"the recipe's metric_names has {LOSS!r}, which is what loss() gives; leave it out"
            )
    return names


def _check_known(what: str, used: Sequence[str], names: Sequence[str]) -> None:
    known = [*names, LOSS] if what == "best" else names
    for name in used:
        if name not in known:
            raise ConfigError(
                f"the recipe's {what} names {name!r}, which is not in its metric_names; "
                f"{nearest(name, known)}"
            )
