"""What a user's loop gives, as the recipe that a trainer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.workers.recipe import DataInfo, DataSets

Loss: TypeAlias = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor | float]]
"""Of (output, targets) of a micro-batch: a mean over its samples, or (sum, weight)."""
Metrics: TypeAlias = Callable[[Any, Any], Mapping[str, Tensor]]
"""Of the same: sums over its samples."""


class Untouched(Optimizer):
    """Stands where a trainer has its optimizer: the parameters change outside, by the user's own.

    Args:
        parameters: of a stage, which may have none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__([{"params": list(parameters)}], {"lr": 0.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Changes nothing."""


class LoopRecipe:
    """A model, a loss and metrics that somebody has made already; see `workers.recipe.Recipe`.

    Args:
        model: unsplit.
        loss: of a micro-batch.
        metrics: of a micro-batch.
    """

    unit = "samples"

    def __init__(self, model: nn.Module, loss: Loss, metrics: Metrics | None) -> None:
        self._model = model
        self._loss = loss
        self._metrics = metrics
        if metrics is None:
            self.metric_names: tuple[str, ...] = ()

    def check(self) -> None:
        """The data is the user's business."""

    def open_data(self) -> DataSets:
        """Nobody asks for it: batches come with each step."""
        raise NotImplementedError

    def model(self, info: DataInfo) -> nn.Module:
        """As it was given."""
        return self._model

    def loss(self, output: Any, target: Any) -> Tensor | tuple[Tensor, Tensor | float]:  # noqa: ANN401
        """The user's."""
        return self._loss(output, target)

    def metrics(self, output: object, target: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """The user's."""
        return {} if self._metrics is None else dict(self._metrics(output, target))

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """One that leaves them to the user's."""
        return Untouched([parameter for _, parameter in parameters])
