"""Options declared once: a frozen dataclass becomes arguments, environment variables and TOML keys.

    class Config:                        --batch-size 64              option
        batch_size: int = option(...)    BUNDLERUN_BATCH_SIZE=64      environment
                                         batch-size = 64              TOML file

The first of option, environment, TOML file and default that has a value gives it, and `Resolved`
remembers which.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.options.parser import hide

ENV_PREFIX = "BUNDLERUN_"
_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_OFF = "off"
"""The value of a word that can be typed alone, when it is typed with --no-."""
T = TypeVar("T")


def text_list(text: str) -> tuple[str, ...]:
    """Reads `a,b` as ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def yes_or_no(text: str) -> bool:
    """Reads a truth value of an environment variable."""
    return _TRUTHS[text.strip().lower()]


_KINDS: dict[Callable[[str], object], str] = {
    int: "a whole number",
    float: "a number",
    yes_or_no: "true or false",
}


@dataclass(frozen=True, slots=True)
class Reader:
    """How the text of an option becomes its value.

    Args:
        parse: text to value, a ValueError for a wrong text; `yes_or_no` makes a
            `--name/--no-name` switch.
        kind: what a text must be, for the message about a wrong one; empty: by `parse`.
        metavar: stands for the value in `--help`; None: the name of the option, or N for a number.
        repeats: the option may be typed several times; the texts are joined by commas.
    """

    parse: Callable[[str], object] = str
    kind: str = ""
    metavar: str | None = None
    repeats: bool = False


def option(
    default: T,
    help: str,
    *,
    group: str,
    parse: Callable[[str], object] | Reader = str,
    choices: Sequence[str] = (),
    bare: str = "",
    per_node: bool = False,
    kept: bool = False,
    common: bool = False,
) -> T:
    """Declares one option of a configuration dataclass.

    Args:
        default: the value when nobody gives one.
        help: one line for `--help`.
        group: heading in `--help` and in the plan.
        parse: text to value; a `Reader` where the help or the message needs more.
        choices: the valid texts, when few.
        bare: the value where only the name is typed; then --no-NAME gives "off".
        per_node: each node may have its own value; it does not change the result.
        kept: a run that is resumed needs the value that it began with.
        common: `--help` shows it; else only `--help-all` does.
    """
    reader = parse if isinstance(parse, Reader) else Reader(parse)
    metadata = {
        "help": help,
        "group": group,
        "parse": reader.parse,
        "kind": reader.kind or _KINDS.get(reader.parse, ""),
        "choices": tuple(choices),
        "bare": bare,
        "metavar": reader.metavar,
        "repeats": reader.repeats,
        "per_node": per_node,
        "kept": kept,
        "common": common,
    }
    value: T = dataclasses.field(default=default, metadata=metadata)
    return value


def flag_of(name: str) -> str:
    """The option that sets the field `name`."""
    return "--" + name.replace("_", "-")


def options_of(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of `cls` that are options."""
    return [f for f in dataclasses.fields(cls) if "parse" in f.metadata]


def text_of(value: object) -> str:
    """A value as a user would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds an argument for each option of `cls`; absent ones stay out of the namespace."""
    groups = {group.title: group for group in parser._action_groups}
    for field in options_of(cls):
        meta = field.metadata
        title = meta["group"]
        group = groups.get(title) or parser.add_argument_group(title)
        groups[title] = group
        unset = field.default is None or field.default == () or field.default == ""
        shown = "" if unset else f" (default: {text_of(field.default)})"
        # argparse formats help texts with %.
        text = (meta["help"] + shown).replace("%", "%%")
        if meta["parse"] is yes_or_no:
            action = group.add_argument(
                flag_of(field.name),
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            # As text, whatever the type: `_converted` checks all places with the same messages.
            action = group.add_argument(
                flag_of(field.name),
                default=argparse.SUPPRESS,
                metavar=_metavar(field),
                help=text,
                action=_Joined if meta["repeats"] else "store",
            )
        if not meta["common"]:
            hide(parser, action)


class _Joined(argparse.Action):
    """Keeps all texts of an option that is typed several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def _metavar(field: dataclasses.Field[Any]) -> str | None:
    """What stands for the value in the help; None: the name of the option."""
    meta = field.metadata
    if meta["choices"]:
        return "{" + ",".join(meta["choices"]) + "}"
    is_number = meta["parse"] in (int, float)
    return meta["metavar"] or ("N" if is_number else None)


def with_values(argv: Iterable[str], cls: type) -> list[str]:
    """Rewrites options of `cls` that stand without their value: `--compile` to `--compile=default`.

    argparse would take the next word for the value, which may be DATA.
    """
    bare = {f.name: f.metadata["bare"] for f in options_of(cls) if f.metadata["bare"]}
    written = {flag_of(name): f"{flag_of(name)}={value}" for name, value in bare.items()}
    written |= {"--no-" + flag_of(name)[2:]: f"{flag_of(name)}={_OFF}" for name in bare}
    return [written.get(word, word) for word in argv]


def _converted(field: dataclasses.Field[Any], raw: object, where: str) -> object:
    """The checked value of one option; `where` names the place it came from as a user typed it."""
    meta = field.metadata
    parse = meta["parse"]
    # From a switch or from TOML; as text, True would pass for the value of any text option.
    if isinstance(raw, bool) and not meta["bare"]:
        if parse is yes_or_no:
            return raw
        raise ConfigError(f"{where} {raw} is not {meta['kind'] or 'a text'}")
    # TOML has lists and numbers; as text they pass the same checks as what is typed.
    text = ",".join(map(str, raw)) if isinstance(raw, (list, tuple)) else str(raw)
    if meta["bare"] and text.lower() in _TRUTHS:
        text = meta["bare"] if yes_or_no(text) else _OFF
    if meta["choices"] and text not in meta["choices"]:
        raise ConfigError(f"{where} {text!r} is not one of: {', '.join(meta['choices'])}")
    try:
        return parse(text)
    except (ValueError, KeyError) as exc:
        raise ConfigError(f"{where} {text!r} is not {meta['kind'] or 'valid'}") from exc


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """A configuration and where each of its values came from."""

    value: T
    sources: Mapping[str, str]


def read_toml(path: Path) -> dict[str, object]:
    """The keys of a TOML file of options.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    import tomllib  # `--help` reads no file

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"cannot read --config {str(path)!r}: {exc.strerror}") from exc
    except ValueError as exc:  # TOMLDecodeError, or bytes that are no UTF-8
        raise ConfigError(f"--config {str(path)!r} is not TOML: {exc}") from exc


def check_keys(keys: Iterable[str], classes: Sequence[type], path: str) -> None:
    """Raises ConfigError for a TOML key that no option of `classes` has."""
    valid = [f.name.replace("_", "-") for cls in classes for f in options_of(cls)]
    for key in keys:
        if key.replace("_", "-") not in valid:
            raise ConfigError(f"unknown key {key!r} in {path}; {nearest(key, valid)}")


def resolve(
    cls: type[T],
    given: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    toml: Mapping[str, object],
    toml_name: str = "TOML file",
    site: Mapping[str, tuple[str, Any]] | None = None,
) -> Resolved[T]:
    """Layers option, environment, TOML file, the site's and our default into one `cls`.

    Args:
        given: what argparse found, by field name.
        environ: the environment; `BUNDLERUN_<FIELD>` is read.
        toml: keys of the TOML file, in either spelling; keys of other classes are ignored.
        site: what the batch system, or an earlier run, says, by field name: who says it, and
            the value.

    Raises:
        ConfigError: a value does not fit its option; `cls` may raise it too.
    """
    file_values = {key.replace("-", "_"): value for key, value in toml.items()}
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for field in options_of(cls):
        variable = ENV_PREFIX + field.name.upper()
        if field.name in given:
            source, where, raw = "option", flag_of(field.name), given[field.name]
        elif variable in environ:
            source, where, raw = f"environment {variable}", variable, environ[variable]
        elif field.name in file_values:
            source, where, raw = toml_name, f"{toml_name}: {field.name}", file_values[field.name]
        elif site and field.name in site:
            source, raw = site[field.name]
            where = f"{source}: {field.name}"
        else:
            sources[field.name] = "default"
            continue
        # Only the place that wins is checked: an unused value may be wrong.
        values[field.name] = _converted(field, raw, where)
        sources[field.name] = source
    return Resolved(cls(**values), sources)


def said(
    name: str,
    *,
    given: Mapping[str, object],
    environ: Mapping[str, str],
    toml: Mapping[str, object],
) -> str:
    """What the user gives for one option, by name, unchecked; empty if nothing."""
    keys = (name, name.replace("_", "-"))
    places = (given.get(name), environ.get(ENV_PREFIX + name.upper()), *map(toml.get, keys))
    found = next((value for value in places if value is not None), "")
    return "" if found is False else text_of(found)


def argv_of(config: object) -> list[str]:
    """The command-line options that give `config`, defaults left out."""
    words: list[str] = []
    for field in options_of(type(config)):
        value = getattr(config, field.name)
        # The ranks have the same defaults, and a short command is easier to read.
        if value == field.default:
            continue
        if field.metadata["parse"] is yes_or_no:
            words.append(flag_of(field.name) if value else "--no-" + flag_of(field.name)[2:])
        else:
            words.append(f"{flag_of(field.name)}={text_of(value)}")
    return words


def groups_of(cls: type) -> dict[str, list[str]]:
    """Field names by heading, in order."""
    groups: dict[str, list[str]] = {}
    for field in options_of(cls):
        groups.setdefault(field.metadata["group"], []).append(field.name)
    return groups
