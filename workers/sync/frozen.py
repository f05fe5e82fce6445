"""Parameters that are not trained, and whether they stay so: nobody sums gradients of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch.nn import Parameter

from bundlerun.launcher.errors import ConfigError


class Frozen:
    """The parameters that need no gradient when a run begins.

    Args:
        parameters: of one rank; those that are trained are left out.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._parameters = [p for p in parameters if not p.requires_grad]

    def check(self) -> None:
        """Looks at them after the backwards of a step.

        Raises:
            ConfigError: one has a gradient now: of this rank alone, and of all steps since.
        """
        for parameter in self._parameters:
            if parameter.requires_grad and parameter.grad is not None:
                raise ConfigError(
                    f"a parameter of shape {list(parameter.shape)} is trained now, and was not "
                    "when this start of the run began, so its gradient is summed with nobody's; "
                    "let it require grad from the beginning, with a learning rate of 0 until it "
                    "is to move"
                )
