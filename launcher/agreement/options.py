"""The options that a run was started with, kept in its folder: for `--like`, and to look at.

given-options/NODE.json   {"train": {"lr": {"value": 0.1, "source": "default"}, ...}, "launch": ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import Resolved, options_of
from bundlerun.launcher.options.like import Like
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

_OWN_TO_A_RUN = frozenset({"run_dir", "snapshot_dir"})
"""Training options that another run must not have alike."""
_OWN_TO_A_NODE = frozenset({"node_name", "local_addr", "node_rank", "log_dir", "rdzv_id"})
"""Launch options that say which node or job it was."""
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("microbatch_size",),
    "shape": ("cut", "chunks", "schedule", "recompute", "microbatch_size"),
    "model": ("cut", "init_from", "new_head"),
    "recipe": ("model", "cut", "init_from", "new_head", "tokenizer"),
}
"""Options that mean something for one value of another only: who gives that, gives these anew."""


def keep_options(
    paths: RunPaths, node: str, train: Resolved[TrainConfig], launch: Resolved[LaunchConfig]
) -> None:
    """Keeps what this node was started with; a folder that is full does without."""
    known = {"train": _document(train, train.value.to_plain()), "launch": _document(launch)}
    with suppress(OSError):
        write_text(paths.node_options(node), json.dumps(known, indent=1) + "\n")


def _document(
    resolved: Resolved[Any], plain: Mapping[str, object] | None = None
) -> dict[str, dict[str, object]]:
    return {
        name: {
            "value": plain[name] if plain else getattr(resolved.value, name),
            "source": source,
        }
        for name, source in resolved.sources.items()
    }


def read_like(paths: RunPaths, node: str, is_said: Mapping[str, bool]) -> Like:
    """What a new run takes over from the one in `paths`.

    Args:
        node: this one's name; another node's launch options do where it took no part.
        is_said: whether the user gives an option by another way, by field name.

    Raises:
        ConfigError: no run has begun there, or its files cannot be read.
    """
    name = f"--like {paths.root}"
    config = _read(paths.config)
    if config is None:
        raise ConfigError(
            f"{name}: there is no {paths.config.name} in it, which a run writes as it begins; give "
            "the folder of a run"
        )
    kept = _read_options(paths, node)
    sources = {key: str(about["source"]) for key, about in kept.get("train", {}).items()}
    dropped = {
        each
        for option, followers in _FOLLOWS.items()
        if is_said.get(option)
        for each in followers
        # A size that the run has settled by itself is settled anew; one that was asked for stays.
        if each != "microbatch_size" or sources.get(each, "default") == "default"
    }
    train = _taken(TrainConfig, config, leave=_OWN_TO_A_RUN | dropped, source=name)
    launch = {key: about["value"] for key, about in kept.get("launch", {}).items()}
    known = {f.name for f in options_of(TrainConfig)} | {"data"}
    return Like(
        name=name,
        data=str(config.get("data") or ""),
        train=train,
        launch=_taken(LaunchConfig, launch, leave=_OWN_TO_A_NODE, source=name),
        unknown=tuple(key for key in config if key not in known),
    )


def _taken(
    cls: type, values: Mapping[str, Any], *, leave: frozenset[str] | set[str], source: str
) -> dict[str, tuple[str, Any]]:
    """Values that are no defaults: those need no source but themselves."""
    found = {}
    for option in options_of(cls):
        if option.name in leave or option.name not in values:
            continue
        value = values[option.name]
        default = getattr(option.default, "widths", option.default)
        plain = tuple(value) if isinstance(value, list) else value
        if plain != default:
            found[option.name] = (source, value)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_options(paths: RunPaths, node: str) -> dict[str, Any]:
    """Of this node, else of the first that there is."""
    for file in (paths.node_options(node), *sorted(paths.given_options.glob("*.json"))):
        found = _read(file)
        if found is not None:
            return found
    return {}
