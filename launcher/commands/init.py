"""`bundlerun init`: writes a commented file of options for this machine and this data."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE, ConfigError, NodeError
from bundlerun.launcher.models.name import check_model
from bundlerun.launcher.models.recipes import check_recipe
from bundlerun.launcher.proposal.data_look import look_at_data
from bundlerun.launcher.proposal.machine_look import look_at_machine
from bundlerun.launcher.proposal.proposal import propose
from bundlerun.launcher.proposal.toml_file import toml_text
from bundlerun.launcher.run_folder.files import create_text, write_text


def run(args: argparse.Namespace) -> int:
    """Writes the file.

    Raises:
        ConfigError: there is no such data, model or recipe, or the file is there already.
        NodeError: it cannot be written.
    """
    output = Path(args.output)
    if output.exists() and not args.force:
        raise _is_there(output)
    if not output.parent.is_dir():
        raise ConfigError(
            f"folder {str(output.parent)!r} of --output does not exist; make it first"
        )
    data = look_at_data(args.data, synthetic_samples=TrainConfig().synthetic_samples)
    recipe = args.recipe or data.recipe
    check_recipe(recipe, "")
    if args.model:
        check_model(args.model, recipe)
    machine = look_at_machine(os.environ, Path.cwd())
    parts = propose(machine, data, model=args.model, recipe=recipe)
    name = shlex.quote(str(output))
    text = toml_text(parts, name=name)
    try:
        if args.force:
            write_text(output, text)
        elif not create_text(output, text):
            raise _is_there(output)
    except OSError as exc:
        raise NodeError(f"cannot write --output {str(output)!r}: {exc.strerror}") from exc
    print(f"{output}: options for {args.data} on this machine; look at it, then")
    print(f"    bundlerun plan --config {name}")
    print(f"    bundlerun run --config {name}")
    return EXIT_DONE


def _is_there(output: Path) -> ConfigError:
    return ConfigError(
        f"{str(output)!r} is there already; give --force to replace it, or another --output"
    )
