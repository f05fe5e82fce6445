"""Files of options that come with bundlerun: `--config resnet50-v2`."""

from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.errors import ConfigError, nearest

SUFFIX = ".toml"
_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """What --config takes besides files."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}"))


def config_path(named: str) -> Path:
    """The file that --config names: a file, or else the shipped one of that name.

    Raises:
        ConfigError: it is a name, and neither is there.
    """
    path = Path(named)
    if path.exists() or path.suffix == SUFFIX or len(path.parts) != 1:
        return path
    if named not in shipped_names():
        raise ConfigError(
            f"--config {named!r} is no file, and none of those that come with bundlerun: "
            f"{', '.join(shipped_names())}; {nearest(named, shipped_names())}"
        )
    return _FOLDER / f"{named}{SUFFIX}"
