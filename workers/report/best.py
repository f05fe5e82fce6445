"""Which validation is the best: by one metric, or by the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.workers.recipe import Recipe

LOSS = "loss"


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
    def of(cls, recipe: Recipe) -> Best:
        """What the recipe says in `best`: ("mae", "min"), or ("top1", "max").

        Raises:
            ConfigError: it says something else.
        """
        said = getattr(recipe, "best", None)
        if said is None:
            return cls()
        if isinstance(said, (tuple, list)) and len(said) == 2 and isinstance(said[0], str):
            name, way = said
            if way in ("max", "min"):
                return cls(name, way == "max")
        raise ConfigError(
            f"the recipe's best is {said!r}; give the name of a metric and which way is better, "
            'such as best = ("mae", "min")'
        )

    def decides(self, metrics: Mapping[str, float]) -> str:
        """The name of what decides."""
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
        is_higher = self.is_higher if self.name else name != LOSS
        return value if is_higher else -value
