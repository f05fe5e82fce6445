"""What draws is optional, and is looked for before the work."""

from __future__ import annotations

from importlib.util import find_spec

from bundlerun.launcher.errors import ConfigError


def check_drawing(what: str) -> None:
    """Says what is to be installed, where that is missing; imports nothing.

    Args:
        what: needs it, such as "a report".

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            f"{what} needs the package matplotlib, which is not installed; pip install "
            "'bundlerun[report]'"
        )
