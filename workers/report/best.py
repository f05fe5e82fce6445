"""Which validation is the best: by one metric, or by the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError, nearest

LOSS = "loss"
_WAYS = ("max", "min")


@dataclass(frozen=True, slots=True)
class Best:
    """What decides.

    Args:
        name: of a metric, or "loss"; empty: the first metric, else the loss.
        is_higher: whether a higher value is better.
    """

    name: str = ""
    is_higher: bool = True

    @classmethod
    def said(cls, said: object) -> Best:
        """What a recipe says in `best`: ("mae", "min"), or ("top1", "max"); None for nothing.

        Raises:
            ConfigError: it says something else.
        """
        if said is None:
            return cls()
        if isinstance(said, (tuple, list)) and len(said) == 2:
            name, way = said
            if isinstance(name, str) and way in _WAYS:
                return cls(name, way == "max")
        _check_one(said)
        raise ConfigError(
            f"the recipe's best is {said!r}; give the name of a metric and which way is better, "
            'such as best = ("mae", "min")'
        )

    def decides(self, metrics: Mapping[str, float]) -> str:
        """The name of what decides."""
        # Dicts keep their order, so this is the first metric that the recipe gives.
        return self.name or next(iter(metrics), LOSS)

    def score(self, loss: float, metrics: Mapping[str, float]) -> float:
        """How good a validation is; higher is better.

        Raises:
            ConfigError: there is no such metric.
        """
        name = self.decides(metrics)
        if name not in metrics and name != LOSS:
            raise ConfigError(
                f"the recipe's best names {name!r}, which metrics() does not give; "
                f"{nearest(name, [*metrics, LOSS])}"
            )
        value = metrics.get(name, loss)
        # A recipe that says nothing: metrics are taken as higher is better, the loss as lower.
        is_higher = self.is_higher if self.name else name != LOSS
        return value if is_higher else -value


def _check_one(said: object) -> None:
    """Raises ConfigError where it names several metrics, each with its way."""
    pairs = list(said.items()) if isinstance(said, dict) else said
    if not isinstance(pairs, (tuple, list)):
        return
    named = [
        pair for pair in pairs
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and pair[1] in _WAYS
    ]  # fmt: skip
    if len(named) > 1:
        names = " and ".join(repr(name) for name, _ in named)
        raise ConfigError(
            f"the recipe's best names {names}, but one metric decides; give one of them, such as "
            f"best = {tuple(named[0])!r}"
        )
