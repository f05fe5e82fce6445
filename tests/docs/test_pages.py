"""The commands of all pages run, from the pages themselves: light ones always, all where asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main
from tests.docs.run_pages import (
    LEFT_OUT,
    commands_of,
    environment,
    furnish,
    in_place,
    run,
    weights,
)
from tests.unit.docs.pages import DOCS, PAGES, ROOT, WRONG, words_of

RIGHT = [page for page in PAGES if page not in (WRONG, ROOT / "CHANGELOG.md")]
IDS = [str(page.relative_to(ROOT)) for page in RIGHT]


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Files that pages tell to write, by name."""
    tutorial = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", tutorial, re.MULTILINE | re.DOTALL)
    return {"digits.toml": block, "run.toml": 'data = "photos"\nmodel = "resnet18"\n'}


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("ready")
    furnish(folder, None, texts)
    assert run("bundlerun run --model resnet18 --run-dir runs/ready photos", folder) == ""
    return folder / "runs" / "ready"


def test_each_command_is_run_or_has_a_reason_why_not() -> None:
    found = {str(page.relative_to(ROOT)): commands_of(page) for page in RIGHT}
    assert {name: each.unknown for name, each in found.items() if each.unknown} == {}
    assert sum(len(each.run) for each in found.values()) > 80
    left = {line for each in found.values() for line in each.left}
    stale = [p for p, _ in LEFT_OUT if not any(re.search(p, line) for line in left)]
    assert stale == [], "no page has such a command"


def test_reasons_name_tests_that_are_there() -> None:
    named = [path for _, why in LEFT_OUT for path in re.findall(r"tests/[\w/.]+", why)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_commands_that_start_no_rank_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, those for which no run has to be there."""
    furnish(tmp_path, None, texts)
    (tmp_path / "run.toml").unlink()  # `init` writes it
    monkeypatch.chdir(tmp_path)
    wrong = {}
    lines = dict.fromkeys(line for page in RIGHT for line in commands_of(page).run)
    # A plan that is to be chosen measures the model first: the long form does.
    light = [
        line
        for line in lines
        if re.match(r"bundlerun (plan|init|submit)\b", line) and "--shape auto" not in line
    ]
    for line in light:
        for name, value in environment(line).items():
            if name.startswith("BUNDLERUN_"):
                monkeypatch.setenv(name, value)
        try:
            code = main(words_of(in_place(line))[1:])
        except SystemExit as exc:
            code = int(exc.code or 0)
        if code:
            wrong[line] = capsys.readouterr().err[-500:]
    assert wrong == {}
    assert len(light) > 6


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", RIGHT, ids=IDS)
def test_all_commands_of_a_page_run(
    page: Path, tmp_path: Path, texts: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """In order, each as it is typed, in one folder."""
    lines = commands_of(page).run
    if not lines:
        return
    furnish(tmp_path, request.getfixturevalue("ready"), texts)
    weights(tmp_path, lines)
    wrong = []
    for line in lines:
        if line.startswith("bundlerun init"):
            (tmp_path / "run.toml").unlink()  # it writes it
        wrong.append(run(line, tmp_path))
    assert not any(wrong), "\n\n".join(filter(None, wrong))
