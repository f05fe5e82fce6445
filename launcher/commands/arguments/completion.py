"""The arguments of `bundlerun completion`."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")
_HOW = {
    "bash": 'eval "$(bundlerun completion bash)"          # in ~/.bashrc',
    "zsh": 'eval "$(bundlerun completion zsh)"           # in ~/.zshrc, after compinit',
    "fish": "bundlerun completion fish | source           # in ~/.config/fish/config.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun completion`."""
    parser.description = (
        "Print what makes a shell complete commands, options, choices, names of models and run "
        "folders of bundlerun."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(_HOW.values())
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
