"""A user's own file: what it may import, and how its errors are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.user_file import module_from_file


@pytest.fixture(autouse=True)
def _import_state_kept() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_file_imports_its_siblings_at_once_and_later(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        mine="import beside_a\ndef late():\n    import beside_b\n    return beside_b.VALUE",
        beside_a="VALUE = 1",
        beside_b="VALUE = 2",
    )
    module = module_from_file(str(folder / "mine.py"), "--model")
    assert (module.beside_a.VALUE, module.late()) == (1, 2)


def test_files_of_two_folders_import_each_its_own_siblings(tmp_path: Path) -> None:
    first = written(tmp_path / "a", mine="import beside_c as b", beside_c="VALUE = 1")
    second = written(tmp_path / "b", mine="import beside_d as b", beside_d="VALUE = 2")
    modules = [module_from_file(str(f / "mine.py"), "--model") for f in (first, second)]
    assert [module.b.VALUE for module in modules] == [1, 2]


def test_two_siblings_of_one_name_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "a", mine="import beside_e", beside_e="")
    second = written(tmp_path / "b", other="import beside_e", beside_e="")
    module_from_file(str(first / "mine.py"), "--model")
    message = r"--recipe .*other.py' has 'beside_e.py' next to it, and"
    with pytest.raises(ConfigError, match=message):
        module_from_file(str(second / "other.py"), "--recipe")


def test_what_cannot_be_imported_is_told_in_a_line(tmp_path: Path) -> None:
    folder = written(tmp_path, mine="import no_such_module_at_all")
    with pytest.raises(ConfigError) as caught:
        module_from_file(str(folder / "mine.py"), "--model")
    assert str(caught.value).endswith(
        "ModuleNotFoundError: No module named 'no_such_module_at_all'"
    )
    assert "\n" not in str(caught.value)


def test_another_error_shows_the_traceback_from_the_user_s_line_on(tmp_path: Path) -> None:
    folder = written(tmp_path, mine="def broken():\n    return 1 / 0\nbroken()")
    with pytest.raises(ConfigError) as caught:
        module_from_file(str(folder / "mine.py"), "--model")
    told = str(caught.value)
    assert told.count("Traceback") == 1
    assert told.index('mine.py", line 3') < told.index('mine.py", line 2')
    assert told.endswith("ZeroDivisionError: division by zero")
    assert "user_file.py" not in told


@pytest.mark.parametrize(
    "line",
    [
        "from workers.recipe import Sample",
        "import workers.recipe as r",
        "def f():\n    import workers",
    ],
)
def test_an_older_name_of_ours_is_told_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "mine", recipe=line) / "recipe.py"
    for path in ([], [str(Path(__file__).parents[3])]):  # installed, and in a checkout
        monkeypatch.setattr(sys, "path", path)
        with pytest.raises(ConfigError) as caught:
            module_from_file(str(file), "--recipe")
        told = str(caught.value)
        assert told.startswith(f"--recipe '{file}' imports 'workers")
        assert "its name is 'bundlerun.workers" in told
        assert "\n" not in told


def test_a_folder_of_the_user_s_may_have_a_name_that_was_ours(tmp_path: Path) -> None:
    folder = written(tmp_path, mine="from workers.blocks import VALUE")
    written(folder / "workers", __init__="", blocks="VALUE = 3")
    assert module_from_file(str(folder / "mine.py"), "--model").VALUE == 3
