"""`bundlerun completion`: what a shell needs to complete our command line; and the completing.

The shell starts `bundlerun` at each TAB, with variables of the library argcomplete's: options are
those of the parsers, and values are looked up, so that nothing has to be written again when either
changes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.models.name import (
    LIBRARIES,
    OF_IMAGES,
    RECIPES,
    timm_names,
    torchvision_names,
)
from bundlerun.launcher.options.declared import options_of
from bundlerun.launcher.preflight import SYNTHETIC
from bundlerun.launcher.run_folder.latest import RUNS
from bundlerun.launcher.run_folder.paths import RunPaths

_LIBRARY = "argcomplete"
_RUNS = frozenset({"run_dir", "run_folder", "like", "run", "runs"})
"""Arguments that name a run."""
Completer = Callable[..., Iterable[str]]


def run(args: argparse.Namespace) -> int:
    """Prints the text for a shell.

    Raises:
        ConfigError: the library behind it is not installed.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise ConfigError(
            f"completion needs the package {_LIBRARY}, which is not installed; pip install "
            "'bundlerun[completion]'"
        )
    from argcomplete.shell_integration import shellcode

    print(shellcode(["bundlerun"], shell=args.shell))
    return EXIT_DONE


def complete(parser_of: Callable[[str], argparse.ArgumentParser], line: str) -> None:
    """Answers a shell that asks, and ends the process; returns where the library is missing.

    Args:
        parser_of: the parser in which the arguments of one command are.
        line: what is typed.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        return
    import argcomplete

    words = line.split()
    parser = parser_of(words[1] if len(words) > 1 else "")
    give_values(parser)
    argcomplete.autocomplete(parser, always_complete_options="long")


def give_values(parser: argparse.ArgumentParser) -> None:
    """Tells the library how the values of arguments are completed."""
    declared = {f.name: f for cls in (TrainConfig, LaunchConfig) for f in options_of(cls)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                give_values(sub)
            continue
        field = declared.get(action.dest)
        if field is not None and field.metadata["choices"]:
            action.choices = field.metadata["choices"]
        elif completer := _completer(action.dest):
            # The library looks for this attribute.
            setattr(action, "completer", completer)  # noqa: B010


def _completer(name: str) -> Completer | None:
    if name in _RUNS:
        return run_folders
    return {"model": model_names, "recipe": recipes, "data": data_sets, "config": toml_files}.get(
        name
    )


def model_names(prefix: str, **_: object) -> list[str]:
    """Models that begin so; those of a library once it is typed."""
    before, colon, _name = prefix.partition(":")
    if colon and before == "timm":
        return [f"timm:{name}" for name in timm_names()]
    if colon and before == "torchvision":
        return [f"torchvision:{name}" for name in torchvision_names(classifies=False)]
    if colon and before == "hf":
        return [f"hf:{path}" for path in _paths(prefix.partition(":")[2], folders=True)]
    return [
        *torchvision_names(),
        *(f"{name}:" for name in LIBRARIES),
        *_paths(prefix, suffix=".py"),
    ]


def recipes(prefix: str, **_: object) -> list[str]:
    """Those that come with bundlerun, and files."""
    return [OF_IMAGES, *(name for name in RECIPES if name != OF_IMAGES), *_paths(prefix, ".py")]


def data_sets(prefix: str, **_: object) -> list[str]:
    """Files and folders, and the word for synthetic data."""
    return [SYNTHETIC, *_paths(prefix)]


def toml_files(prefix: str, **_: object) -> list[str]:
    """Files of options."""
    return _paths(prefix, ".toml")


def run_folders(prefix: str, **_: object) -> list[str]:
    """Runs in `runs`, and in the folder that is typed; other folders lead to some."""
    paths = [*(RUNS.iterdir() if RUNS.is_dir() and not prefix else ()), *_entries(prefix)]
    folders = {path for path in paths if path.is_dir()}
    return sorted(f"{path}" if RunPaths(path).is_used else f"{path}/" for path in folders)


def _paths(prefix: str, suffix: str = "", *, folders: bool = False) -> list[str]:
    """What is in the folder that is typed: files that end so, and folders."""
    found = []
    for path in _entries(prefix):
        if path.is_dir():
            found.append(f"{path}/")
        elif not folders and path.name.endswith(suffix):
            found.append(str(path))
    return found


def _entries(prefix: str) -> list[Path]:
    folder = os.path.dirname(prefix)  # noqa: PTH120 (a Path forgets a slash at the end)
    try:
        names = sorted(path.name for path in Path(folder or ".").iterdir())
    except OSError:
        return []
    return [Path(folder, name) for name in names if not name.startswith(".")]
