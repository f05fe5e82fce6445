"""Pages that are made of the source: every option, and every error that is told."""

from __future__ import annotations

import ast
import html
import re
import subprocess
import sys

import pytest

from bundlerun.launcher import errors as kinds
from bundlerun.launcher.cli import COMMANDS
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import flag_of, options_of
from docs.generate import errors, reference
from docs.generate.messages import all_messages, error_classes, messages, sources
from tests.unit.docs.pages import ROOT

TREES = sources()
CLASSES = error_classes(TREES)
MESSAGES = all_messages()
PAGES = errors.pages()


def plain(page: str) -> str:
    return re.sub(r"\\(.)", r"\1", html.unescape(page))


def test_every_error_that_is_raised_has_a_text_on_a_page() -> None:
    """Counted apart from what makes the pages: each place in the source that makes an error."""
    made = {
        (file, node.lineno)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) in CLASSES
        and node.args
    }
    assert len(made) > 400
    assert made - {(each.file, each.line) for each in MESSAGES} == set()


def test_the_texts_are_in_the_pages_with_code_and_way_on() -> None:
    cells = {name: plain(text) for name, text in PAGES.items()}
    for message in errors.shown_messages():
        wrong, way_on = errors.halves(message)
        code = errors.exit_code(message.error, CLASSES)
        assert way_on
        row = f"| {wrong} | {code} | {way_on} |"
        assert row in cells[f"errors/{errors.area_of(message.file)}.md"], message


def test_few_texts_are_only_passed_on() -> None:
    """A text that comes out of another one is listed where that is made."""
    passed_on = [m for m in MESSAGES if errors._BARE.fullmatch(m.text)]
    assert len(passed_on) < 0.05 * len(MESSAGES)


def test_every_file_with_errors_is_in_an_area() -> None:
    areas = {errors.area_of(message.file) for message in MESSAGES}
    assert areas == set(errors.AREAS)


def test_rows_of_a_table_have_three_cells() -> None:
    for text in PAGES.values():
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert len(rows) > 5
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


SOURCE = """
class Lost(NodeError):
    pass
WAY = "start again"
def told(name):
    if name:
        return f"{name!r} is gone"
    return "all are gone"
def f(config, names):
    what = "one" if names else "two"
    raise ConfigError(f"--lr {config.lr} is {'low' if names else 'high'}; use {WAY}")
    raise Lost(told(names))
    raise ConfigError(what)
    raise ConfigError("a" + "b")
    print(f"error: {names}; give one")
"""


def test_texts_are_read_out_of_the_source() -> None:
    classes = (
        "class BundleError: ...\n"
        "class ConfigError(BundleError): ...\n"
        "class NodeError(BundleError): ..."
    )
    trees = {"errors.py": ast.parse(classes), "f.py": ast.parse(SOURCE)}
    assert {(each.error, each.text) for each in messages(trees)} == {
        ("ConfigError", "--lr <lr> is low; use <WAY>"),
        ("ConfigError", "--lr <lr> is high; use <WAY>"),
        ("Lost", "'<name>' is gone"),
        ("Lost", "all are gone"),
        ("ConfigError", "one"),
        ("ConfigError", "two"),
        ("ConfigError", "ab"),
        ("", "error: <names>; give one"),
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ConfigError", kinds.EXIT_CONFIG),
        ("NodeError", kinds.EXIT_NODE),
        ("CheckpointError", kinds.EXIT_FAILED),
        ("UnreadableSample", kinds.EXIT_CONFIG),
        ("SlurmError", kinds.EXIT_FAILED),
        ("", kinds.EXIT_CONFIG),
    ],
)
def test_the_exit_code_is_that_of_the_class(error: str, code: int) -> None:
    assert errors.exit_code(error, CLASSES) == code


def test_every_option_is_in_the_reference_once() -> None:
    page = reference.pages()["reference/options.md"]
    for cls in (TrainConfig, LaunchConfig):
        for field in options_of(cls):
            assert page.count(f"| `{flag_of(field.name)}` |") == 1, field.name


def test_every_command_is_in_the_reference_with_its_arguments() -> None:
    page = reference.pages()["reference/commands.md"]
    options = reference.pages()["reference/options.md"]
    for name in COMMANDS:
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for action in reference.parser_of(name)._actions:
            flags = [flag for flag in action.option_strings if not flag.startswith("--no-")]
            if flags and flags[-1] != "--help" and action.help != "==SUPPRESS==":
                there = f"`{flags[-1]}" in section or f"| `{flags[-1]}` |" in options
                assert there, f"{name} {flags[-1]}"


def test_pages_are_made_without_torch() -> None:
    code = "import sys, docs.generate.reference as r; r.pages(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
