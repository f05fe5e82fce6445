"""Pages of all commands and options, made of what reads them."""

from __future__ import annotations

import argparse
import html
import importlib
import re
from collections.abc import Iterable
from dataclasses import Field
from typing import Any

from bundlerun.launcher.cli import COMMANDS
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import ENV_PREFIX, flag_of, options_of, text_of
from bundlerun.launcher.options.parser import Parser

SETS = {"training": TrainConfig, "launch": LaunchConfig}
"""Options that several commands have: a page of their own."""


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    return {"reference/options.md": _options(), "reference/commands.md": _commands()}


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, with all its options."""
    parser = Parser(prog=f"bundlerun {command}", description=COMMANDS[command].text)
    importlib.import_module(COMMANDS[command].arguments).add_arguments(parser)
    return parser


def _options() -> str:
    lines = [
        "# All options", "",
        "An option comes from the command line (`--batch-size 64`), from the environment "
        "(`BUNDLERUN_BATCH_SIZE=64`), or from the TOML file of `--config` (`batch-size = 64`); the "
        "first of these that has it counts. `bundlerun plan` shows each value with where it came "
        "from. What a command has besides is in [commands](commands.md).", "",
        "*Each node* may have its own value; a run that is *resumed* needs the value that it began "
        "with.", "",
    ]  # fmt: skip
    for name, cls in SETS.items():
        lines += [f"## The {name} options", ""]
        groups: dict[str, list[Field[Any]]] = {}
        for field in options_of(cls):
            groups.setdefault(field.metadata["group"], []).append(field)
        for group, fields in groups.items():
            lines += [f"### {group[:1].upper()}{group[1:]}", ""]
            lines += ["| option | default | what it does |", "|---|---|---|"]
            lines += [_option(field) for field in fields] + [""]
    return "\n".join(lines)


def _option(field: Field[Any]) -> str:
    meta = field.metadata
    default = text_of(field.default)
    values = meta["choices"] or ((meta["bare"], "off") if meta["bare"] else ())
    notes = [f"one of {', '.join(f'`{value}`' for value in values)}"] if values else []
    notes += ["each node"] if meta["per_node"] else []
    notes += ["resumed"] if meta["kept"] else []
    text = _cell(meta["help"]) + (f" ({'; '.join(notes)})" if notes else "")
    return f"| `{flag_of(field.name)}` | {f'`{default}`' if default else ''} | {text} |"


def _commands() -> str:
    lines = [
        "# Commands",
        "",
        "`bundlerun COMMAND --help`, and `--help-all` where there are many options, tell the same.",
        "",
    ]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {_cell(each.text)} |" for name, each in COMMANDS.items()]
    for name in COMMANDS:
        lines += ["", f"## {name}", "", *_command(name)]
    lines += [
        "", "## The worker", "",
        "`python -m bundlerun.workers.train [OPTIONS] DATA` is what the ranks of `bundlerun run` "
        "are; torchrun, `srun` and other launchers start it, too. By itself it is one rank. It "
        "takes the [training options](options.md#the-training-options); their variables begin "
        f"with `{ENV_PREFIX}`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _command(name: str) -> list[str]:
    parser = parser_of(name)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    lines = [_cell(parser.description or ""), "", f"    {_usage(parser)}", ""]
    shared = set()
    for title, cls in SETS.items():
        ours = {flag_of(field.name) for field in options_of(cls)}
        if len(ours & flags) > len(ours) / 2:
            shared |= ours | {"--no-" + flag[2:] for flag in ours}
            lines += [f"It takes the [{title} options](options.md#the-{title}-options).", ""]
    rows = [_action(each) for each in parser._actions if not shared & set(each.option_strings)]
    rows = [row for row in rows if row]
    if rows:
        lines += ["| argument | default | what it does |", "|---|---|---|", *rows]
    return lines


def _usage(parser: argparse.ArgumentParser) -> str:
    has_options = any(each.option_strings for each in parser._actions[1:])
    words = [_shown(each) for each in parser._actions if not each.option_strings]
    needed = [
        f"{each.option_strings[-1]} {_metavar(each)}"
        for each in parser._actions
        if each.option_strings and each.required
    ]
    return " ".join([parser.prog, *needed, *(["[OPTIONS]"] if has_options else []), *words])


def _shown(action: argparse.Action) -> str:
    name = _metavar(action)
    match action.nargs:
        case "?":
            return f"[{name}]"
        case "*" | argparse.REMAINDER:
            return f"[{name} ...]"
        case "+":
            return f"{name} ..."
    return name


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _action(action: argparse.Action) -> str:
    if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
        return ""
    names = list(_names(action))
    default = action.default
    has_default = default not in (None, argparse.SUPPRESS, False, "", ()) and action.nargs != 0
    shown = f"`{text_of(default)}`" if has_default else ""
    about = (action.help or "") % {**vars(action), "prog": ""}
    about = re.sub(r" \(default: [^()]*\)$", "", about) if shown else about
    return f"| {', '.join(f'`{name}`' for name in names)} | {shown} | {_cell(about)} |"


def _names(action: argparse.Action) -> Iterable[str]:
    if not action.option_strings:
        return [_shown(action)]
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    return [name + value for name in action.option_strings]


def _cell(text: str) -> str:
    plain = html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
    return re.sub(r"([*_`\[\]\\])", r"\\\1", plain)
