"""The parser of a command: `--help` shows what people need, `--help-all` every option.

    bundlerun run --help         DATA, the command's own options, those that are declared common
    bundlerun run --help-all     all options, by group

A command with few options has only `--help`, which shows all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from bundlerun.launcher.errors import EXIT_CONFIG, nearest

LONG = 12
"""Options above which a command has `--help-all`, and a usage line that lists none."""


class Parser(argparse.ArgumentParser):
    """Like argparse's; `hidden` are the actions that `--help` leaves out.

    Args: as those of `argparse.ArgumentParser`.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(allow_abbrev=False, **kwargs)
        self.hidden: list[argparse.Action] = []

    @property
    def is_long(self) -> bool:
        """Whether it has more options than people read at once."""
        return sum(bool(action.option_strings) for action in self._actions) > LONG

    def complete(self) -> None:
        """To be called when all arguments are added: makes the two forms of help, if it is long."""
        if not self.is_long:
            return
        named = [_shown(action) for action in self._actions if not action.option_strings]
        self.usage = " ".join([self.prog, "[OPTIONS]", *named]).replace("%", "%%")
        if self.hidden:
            text = "show all options, by group, and exit"
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help=text)

    def format_help(self) -> str:
        """What `--help` prints."""
        hidden = {id(action) for action in self.hidden}
        if not self.is_long or not hidden:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        shown = [action for action in self._actions if id(action) not in hidden]
        for title, has_flags in (("arguments", False), ("options that most need", True)):
            formatter.start_section(title)
            formatter.add_arguments(a for a in shown if bool(a.option_strings) is has_flags)
            formatter.end_section()
        formatter.add_text(self._rest())
        return formatter.format_help()

    def format_help_all(self) -> str:
        """What `--help-all` prints."""
        return super().format_help()

    def _rest(self) -> str:
        hidden = {id(action) for action in self.hidden}
        titles = [
            str(group.title)
            for group in self._action_groups
            if any(id(action) in hidden for action in group._group_actions)
        ]
        return f"{len(hidden)} more, about {', '.join(titles)}: {self.prog} --help-all"


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser._print_message(parser.format_help_all(), sys.stdout)
        parser.exit()


def hide(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
    """Leaves an argument to `--help-all`."""
    if isinstance(parser, Parser):
        parser.hidden.append(action)


def _shown(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return f"[{name}]" if action.nargs in ("?", "*") else name


def parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The arguments that `parser` reads, or the parser of a subcommand, which sets `parser`.

    Raises:
        SystemExit: something is unknown, missing or wrong: code 2, after the usage and one line.
    """
    args, unknown = parser.parse_known_args(words)
    if unknown:
        refuse(getattr(args, "parser", parser), unknown)
    return args


def refuse(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Ends the program with the nearest name for the first word that `parser` does not know."""
    # Options first: an unknown one also leaves its value among the unknown words.
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-") and word != "-"]
    if flags:
        valid = [each for action in parser._actions for each in action.option_strings]
        text = f"unknown option {flags[0]}; {nearest(flags[0], valid, limit=3)}"
    else:
        text = f"one argument too many: {unknown[0]!r}"
    parser.print_usage(sys.stderr)
    lists = "--help-all" if isinstance(parser, Parser) and parser.hidden else "--help"
    parser.exit(EXIT_CONFIG, f"error: {text} ({parser.prog} {lists} lists all)\n")


def kebab(argv: Iterable[str]) -> list[str]:
    """Rewrites `--batch_size=3` to `--batch-size=3`, as torchrun takes both forms."""
    result: list[str] = []
    for word in argv:
        if word.startswith("--") and "_" in word.split("=", 1)[0]:
            name, sign, value = word.partition("=")
            word = name.replace("_", "-") + sign + value
        result.append(word)
    return result
