"""Imports a user's own Python file or module, and reports errors in a user's own code."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType, TracebackType

import bundlerun
from bundlerun.launcher.errors import BundleError, ConfigError

_PREFIX = "bundlerun_user_"
_OURS = Path(bundlerun.__file__).parent
_MOVED = ("launcher", "workers", "splits", "slurm")
"""Packages that were once installed under these names."""
_OWN_PACKAGES = ("bundlerun.", "contextlib", "importlib", "_frozen_importlib")


def module_from_file(path: str, option: str) -> ModuleType:
    """Imports a user's own file, which may import files next to it as a script may.

    Args:
        path: the file.
        option: the option that names it, for the message.

    Raises:
        ConfigError: the file does not exist, is no Python file or imports something that is not
            there; the message of any other error in it has the traceback.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{option} {path!r}: no such file")
    file = file.resolve()
    name = f"{_PREFIX}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option} {path!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    _prepare_imports()
    _let_import_siblings(file, option)
    # Dataclasses and pickle look a class's module up by its name.
    sys.modules[name] = module
    with _imported(f"{option} {path!r}"):
        spec.loader.exec_module(module)
    return module


def module_from_name(name: str, option: str) -> ModuleType:
    """Imports a module that Python finds, or that is in the current folder.

    Args:
        name: of the module, with dots.
        option: the option that names it, for the message.

    Raises:
        ConfigError: there is none; the message of an error in it has the traceback.
    """
    _prepare_imports()
    with _imported(f"{option} {name!r}"):
        return importlib.import_module(name)


def _prepare_imports() -> None:
    """Lets users' code import the packages of the current folder, and ours by today's names."""
    # Before it runs: an import by an old name would already have loaded our package again.
    if _OLD_NAMES not in sys.meta_path:
        sys.meta_path.insert(0, _OLD_NAMES)
    # Last: what is installed is never hidden by a folder that happens to be here.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


@contextmanager
def _imported(what: str) -> Iterator[None]:
    """What is raised while a user's code is imported becomes a ConfigError."""
    try:
        with users_code(what):
            yield
    except ConfigError as exc:
        # For these two the cause in one line says it all; other errors need their traceback.
        if not isinstance(exc.__cause__, (ImportError, SyntaxError)):
            raise
        cause = exc.__cause__
        raise ConfigError(f"{what} cannot be imported: {type(cause).__name__}: {cause}") from cause


class _OldNames(MetaPathFinder):
    """Names our packages as they are called now, where a user's file has an older name.

    Without this a checkout would load them a second time, under both names. What the user has
    under such a name is the user's.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Leaves everything else to those that come after it.

        Raises:
            ModuleNotFoundError: `fullname` is ours, or nobody's.
        """
        top = fullname.partition(".")[0]
        if top in _MOVED and self._is_ours(top):
            raise ModuleNotFoundError(
                f"No module named {fullname!r} (that of bundlerun is 'bundlerun.{fullname}')",
                name=fullname,
            )

    def _is_ours(self, top: str) -> bool:
        """Whether an import of `top` finds our package, or nothing at all."""
        loaded = getattr(sys.modules.get(top), "__spec__", None)
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(top, None) for finder in others)
        spec = loaded or next((spec for spec in specs if spec is not None), None)
        places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin])
        return all(Path(place).resolve() == (_OURS / top).resolve() for place in places)


_OLD_NAMES = _OldNames()


def _let_import_siblings(file: Path, option: str) -> None:
    """Puts the file's folder first where Python looks for modules, as for a script.

    Raises:
        ConfigError: a file next to it has the name of a module from another user folder.
    """
    folder = file.parent
    others = _users_folders() - {folder}
    for sibling in sorted(folder.glob("*.py")):
        loaded = getattr(sys.modules.get(sibling.stem), "__file__", None)
        if loaded is not None and Path(loaded).parent in others:
            raise ConfigError(
                f"{option} {str(file)!r} has {sibling.name!r} next to it, and {loaded!r} is "
                "imported under that name already; rename one of the two"
            )
    # First, also where it was further down already.
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]


def _users_folders() -> set[Path]:
    """The folders that users' files were imported from."""
    files = [m.__file__ for name, m in sys.modules.items() if name.startswith(_PREFIX)]
    return {Path(file).parent for file in files if file}


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turns an exception of a user's code into a ConfigError that holds its traceback.

    Args:
        what: names the code in the message.
    """
    try:
        yield
    except BundleError:
        raise
    except Exception as exc:
        lines = traceback.format_exception(type(exc), exc, _from_users_code(exc.__traceback__))
        raise ConfigError(f"{what} failed:\n{''.join(lines).rstrip()}") from exc


def _from_users_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames before the user's first one."""
    found = trace
    while found is not None and _is_own(found):
        found = found.tb_next
    return found or trace


def _is_own(trace: TracebackType) -> bool:
    return str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_OWN_PACKAGES)
