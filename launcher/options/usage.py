"""Reports wrong options and variables, with the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.options.declared import ENV_PREFIX, options_of

DATA_VARIABLE = "BUNDLERUN_DATA"
NOT_OPTIONS = frozenset(
    {
        "BUNDLERUN_AGENT_OF",
        "BUNDLERUN_BOARD",
        "BUNDLERUN_CLAIMED",
        "BUNDLERUN_CPU_ONLY",
        "BUNDLERUN_NODE_GPUS",
        "BUNDLERUN_PLANNED_BUNDLES",
        "BUNDLERUN_PROSPECTS",
        DATA_VARIABLE,
        "BUNDLERUN_SLURM_NONCE",
        "BUNDLERUN_SLURM_VERSIONS",
        "BUNDLERUN_TAKEN_S",
        "BUNDLERUN_TERMS",
        "BUNDLERUN_TOKEN",
    }
)
"""Variables of ours that are no options."""
_FOR_TESTS = ("BUNDLERUN_TEST_", "BUNDLERUN_FAULTS")
_KUBERNETES = re.compile(r".*_SERVICE_(HOST|PORT(_\w+)?)|.*_PORT(_\d+_(TCP|UDP)(_\w+)?)?")
"""What Kubernetes sets in every container for a service whose name begins with bundlerun."""


def check_variables(environ: Mapping[str, str], classes: Iterable[type]) -> None:
    """Raises ConfigError for a BUNDLERUN_ variable that nobody would read.

    Ignored in silence, it would train another model than the one that is meant.

    Args:
        classes: whose options may be given by variables.
    """
    options = {ENV_PREFIX + field.name.upper() for c in classes for field in options_of(c)}
    for name in environ:
        # Kubernetes and tests set variables with our prefix that are no options.
        is_ours = name.startswith(ENV_PREFIX) and name not in options and name not in NOT_OPTIONS
        if is_ours and not name.startswith(_FOR_TESTS) and not _KUBERNETES.fullmatch(name):
            raise ConfigError(
                f"unknown variable {name} in the environment; {nearest(name, options, limit=3)}; "
                "name it right, or unset it"
            )
