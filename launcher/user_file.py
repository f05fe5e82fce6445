"""Importing a user's own Python file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from launcher.errors import ConfigError


def module_from_file(path: str, option: str) -> ModuleType:
    """Imports a user's own file.

    Args:
        path: the file.
        option: the option that names it, for the message.

    Raises:
        ConfigError: the file does not exist, is no Python file or imports what is not there; what
            else goes wrong in it keeps its traceback.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{option} {path!r}: no such file")
    name = f"bundlerun_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option} {path!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as exc:
        raise ConfigError(
            f"{option} {path!r} cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc
    return module
