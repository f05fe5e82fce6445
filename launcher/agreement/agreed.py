"""What all nodes of a run must have alike, and in words where they have not.

`Terms` are a line for each such thing. All nodes compare theirs before the first step (I14); the
run folder keeps those of the last start, so that the next one can tell what has changed.

    --lr                        0.1
    --recipe                    mine.py
    content of --recipe         5d41402abc4b
    DATA                        10 classes: ape, bat, cat, ... (7d793037a076)
    the code of bundlerun       202cb962ac59
    torch                       2.14.1
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from bundlerun.launcher.agreement.data_card import data_card
from bundlerun.launcher.agreement.sources import digest, files_behind, own_digest
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import (
    HF_CONFIG,
    OfFile,
    OfLibrary,
    OfModule,
    find_module,
    package_behind,
    parse_model,
)
from bundlerun.launcher.models.weight_files import find_weights, source_of
from bundlerun.launcher.options.declared import flag_of, options_of, text_of

Terms: TypeAlias = Mapping[str, str]

TERMS_VARIABLE = "BUNDLERUN_TERMS"
PROSPECTS_VARIABLE = "BUNDLERUN_PROSPECTS"
"""What an agent tells its ranks, JSON: they need not look again at files that may have changed."""
DATA = "DATA"
CODE = "the code of bundlerun"
_PACKAGES = ("torch", "torchvision", "numpy")
_FILES = ("recipe", "model")
"""Options that may name a file, whose name and content count and not its place."""
_NUM_SHOWN = 3
"""Nodes with one value that are named, and things that differ that are told."""


def terms_of(config: TrainConfig) -> dict[str, str]:
    """What this node brings: options, files, data, code, versions; takes some 20 ms."""
    terms = {}
    for field in options_of(TrainConfig):
        if not field.metadata["per_node"]:
            flag, value = flag_of(field.name), text_of(getattr(config, field.name))
            terms[flag] = value
            if field.name in _FILES:
                terms |= _file_terms(flag, value)
    terms |= _weight_terms(config) | _tokenizer_terms(config.tokenizer)
    data = data_card(config.data)
    if data:
        terms[DATA] = data
    return terms | _versions(package_behind(config.model))


def terms_of_script(script: Path, argv: Sequence[str]) -> dict[str, str]:
    """What this node brings where a script of the user's own is run: the script and versions."""
    terms = {"the script": script.name, "its arguments": shlex.join(argv)}
    if script.is_file():
        script = script.absolute()
        terms["the content of the script"] = digest(files_behind(script), script.parent)
    return terms | _versions()


def _versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Of our code and of packages: `more`, and those that every rank has."""
    terms = {CODE: own_digest()}  # an editable installation may give an old version
    terms |= {name: _version(name) for name in (*_PACKAGES, *more)}
    return terms | {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def terms_of_node(data: str) -> dict[str, str]:
    """What this node brings to any run: its versions, and what can be seen of DATA."""
    card = data_card(data) if data else ""
    return ({DATA: card} if card else {}) | _versions()


def kept_terms() -> set[str]:
    """Those that must not change when a run continues; a mended model file is the same model."""
    return {DATA} | {flag_of(f.name) for f in options_of(TrainConfig) if f.metadata["kept"]}


def _file_terms(flag: str, value: str) -> dict[str, str]:
    """Files by name, and by content, as nodes may have them at different places."""
    match parse_model(value):
        case OfFile(path, function):
            name = Path(path).name + (f":{function}" if path != value else "")
            return {flag: name, f"content of {flag}": _digest_behind(Path(path).absolute())}
        case OfLibrary("hf", folder):
            file = Path(folder).expanduser().absolute() / HF_CONFIG
            name = f"hf:{file.parent.name}"
            return {flag: name, f"content of {flag}": digest([file], file.parent)}
        case OfModule(module, _):
            # A package that is installed has its version; one that is here has none.
            spec = find_module(module)
            origin = spec.origin if spec else None
            return {f"content of {flag}": _digest_behind(Path(origin))} if origin else {}
        case OfLibrary():
            return {}


def _tokenizer_terms(value: str) -> dict[str, str]:
    """What makes tokens, by name and content, as nodes may have it at different places."""
    if not value:
        return {}
    place, flag = Path(value).expanduser().absolute(), flag_of("tokenizer")
    files = [place]
    if place.is_dir():
        # A folder of save_pretrained may have weights, too, which make no tokens.
        files = sorted(f for f in place.iterdir() if f.suffix in (".json", ".txt", ".model"))
    return {flag: place.name, f"content of {flag}": digest(files, place.parent)}


def _weight_terms(config: TrainConfig) -> dict[str, str]:
    """The weights that a new run begins with, by name and content, as far as they are here."""
    source = source_of(config.init_from, config.model, config.recipe)
    try:
        # A run that goes on does without them: who needs them says what is wrong.
        content = find_weights(source).identity() if source else ""
    except (ConfigError, OSError):
        content = ""
    flag = flag_of("init_from")
    name = {flag: Path(config.init_from).name} if config.init_from else {}
    return {**name, **({f"content of {flag}": content} if content else {})}


def _digest_behind(file: Path) -> str:
    here = Path.cwd()
    return digest(files_behind(file, here), file.parent, here)


def _version(package: str) -> str:
    """Without what comes after "+": builds of one version for this CUDA or that."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed"


def difference(by_node: Mapping[str, Terms]) -> str:
    """Says what nodes do not have alike, and who has what; empty where there is nothing.

    Something that is unknown on a node counts as equal to anything.
    """
    found = list(differences(by_node).values())
    if not found:
        return ""
    more = f"; and {len(found) - _NUM_SHOWN} more differ" if len(found) > _NUM_SHOWN else ""
    what = "; ".join(found[:_NUM_SHOWN]) + more
    return f"{what}; give all nodes the same options, files, data and versions"


def differences(by_node: Mapping[str, Terms]) -> dict[str, str]:
    """What nodes do not have alike, a line each by its name."""
    # A dict and not a set: the message keeps the order of the terms.
    names = {key: None for terms in by_node.values() for key in terms}
    return {key: text for key in names if (text := _one_difference(key, by_node))}


def _one_difference(key: str, by_node: Mapping[str, Terms]) -> str:
    nodes: dict[str, list[str]] = {}
    for node, terms in by_node.items():
        if key in terms:
            nodes.setdefault(terms[key], []).append(node)
    if len(nodes) < 2:
        return ""
    parts = (f"{value or 'not given'} on {_some(names)}" for value, names in nodes.items())
    return f"{key} is {' and '.join(parts)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(names[:_NUM_SHOWN]) + more


def changes(old: Terms, new: Terms) -> dict[str, str]:
    """What has changed between two starts of a run, by name, a line each."""
    return {
        key: f"{key} was {old[key] or 'not given'}, is {value or 'not given'}"
        for key, value in new.items()
        if key in old and old[key] != value
    }
