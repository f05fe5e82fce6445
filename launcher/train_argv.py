"""The training configuration as it comes in: from argv, the environment and a TOML file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import (
    Resolved,
    add_options,
    check_keys,
    read_toml,
    resolve,
    with_values,
)
from bundlerun.launcher.options.like import Like
from bundlerun.launcher.options.parser import Parser, kebab, parsed
from bundlerun.launcher.options.usage import DATA_VARIABLE, check_variables
from bundlerun.launcher.training.shipped import config_path, shipped_names


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `TrainConfig`, DATA and --config."""
    parser.add_argument(
        "data",
        nargs="?",
        default=None,
        metavar="DATA",
        help="ImageFolder root with train/ and val/, what --recipe reads, or synthetic",
    )
    parser.add_argument(
        "--config",
        metavar="FILE|NAME",
        help="TOML file of options, or one that comes with bundlerun: "
        + ", ".join(shipped_names()),
    )
    add_options(parser, TrainConfig)


def train_words(argv: Iterable[str]) -> list[str]:
    """The words that argparse reads, as users may type them in other ways."""
    return with_values(kebab(argv), TrainConfig)


def toml_of(args: argparse.Namespace, *classes: type) -> tuple[dict[str, object], str]:
    """The checked keys of `--config`, and its name; no keys without it.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key.
    """
    if not args.config:
        return {}, "TOML file"
    toml = read_toml(config_path(args.config))
    # DATA is an argument, no option of a class, but may be in the file.
    check_keys([key for key in toml if key != "data"], classes, args.config)
    return toml, args.config


def train_config(
    args: argparse.Namespace,
    *,
    environ: Mapping[str, str],
    toml: Mapping[str, object],
    toml_name: str,
    default_data: str = "",
    like: Like | None = None,
) -> Resolved[TrainConfig]:
    """The training configuration that `args`, the environment and the TOML file say.

    Args:
        default_data: DATA where nobody gives one.
        like: an earlier run, whose options hold where nobody gives others.

    Raises:
        ConfigError: DATA is missing or a value is wrong.
    """
    places = (
        (args.data, "option"),
        (environ.get(DATA_VARIABLE), f"environment {DATA_VARIABLE}"),
        (toml.get("data"), toml_name),
        (like.data or None if like else None, like.name if like else ""),
        (default_data, "default"),
    )
    data, source = next((data, source) for data, source in places if data is not None)
    if not data:
        raise ConfigError("DATA is missing; give an ImageFolder root, or `synthetic`")
    site = like.train if like else None
    resolved = resolve(
        TrainConfig, vars(args), environ=environ, toml=toml, toml_name=toml_name, site=site
    )
    value = replace(resolved.value, data=str(data))
    return Resolved(value, {"data": source, **resolved.sources})


def read_train_argv(argv: Sequence[str], environ: Mapping[str, str]) -> Resolved[TrainConfig]:
    """Reads the command line of `bundlerun.workers.train`.

    Raises:
        ConfigError: a value is wrong.
        SystemExit: an option is unknown (argparse prints usage, code 2).
    """
    parser = Parser(
        prog="python -m bundlerun.workers.train",
        description="Train one rank of a bundle; torchrun starts one per device.",
    )
    add_train_arguments(parser)
    # What deepspeed and torch's old launcher append; the environment says it too.
    parser.add_argument("--local-rank", help=argparse.SUPPRESS)
    parser.complete()
    args = parsed(parser, train_words(argv))
    local_rank = environ.get("LOCAL_RANK", args.local_rank)
    if args.local_rank not in (None, local_rank):
        raise ConfigError(f"--local-rank {args.local_rank}, but LOCAL_RANK={local_rank}")
    check_variables(environ, (TrainConfig, LaunchConfig))
    toml, name = toml_of(args, TrainConfig)
    return train_config(args, environ=environ, toml=toml, toml_name=name)
