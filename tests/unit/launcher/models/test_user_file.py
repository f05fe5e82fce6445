"""A user's own file: what it may import, and how its errors are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.user_file import module_from_file
from bundlerun.workers.recipe import Recipe

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def _import_state_kept() -> Iterator[None]:
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
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


@pytest.mark.parametrize("place", ["installed", "in a checkout", "run from a checkout"])
@pytest.mark.parametrize(
    "line", ["from workers.recipe import Sample", "import workers.recipe as r"]
)
def test_an_older_name_of_ours_is_told_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, place: str
) -> None:
    file = written(tmp_path, recipe="import beside_f", beside_f=line) / "recipe.py"
    monkeypatch.setattr(sys, "path", [] if place == "installed" else [str(ROOT)])
    name = "workers"
    if place == "run from a checkout":  # as `python -m workers.train` leaves it
        spec = PathFinder.find_spec("workers", [str(ROOT)])
        assert spec is not None
        monkeypatch.setitem(sys.modules, "workers", module_from_spec(spec))
        name = "workers.recipe"
    with pytest.raises(ConfigError) as caught:
        module_from_file(str(file), "--recipe")
    assert str(caught.value) == (
        f"--recipe '{file}' cannot be imported: ModuleNotFoundError: No module named {name!r} "
        f"(that of bundlerun is 'bundlerun.{name}')"
    )


@pytest.mark.parametrize(
    "names", [("bundlerun.workers", "workers"), ("workers", "bundlerun.workers")]
)
def test_a_file_may_try_the_new_name_and_an_older_one(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    tries = [f"    from {name}.recipe import Recipe" for name in names]
    text = f"try:\n{tries[0]}\nexcept ImportError:\n{tries[1]}"
    file = written(tmp_path, mine=text) / "mine.py"
    assert module_from_file(str(file), "--recipe").Recipe is Recipe


def test_a_folder_of_the_user_s_may_have_a_name_that_was_ours(tmp_path: Path) -> None:
    folder = written(tmp_path, mine="from workers.blocks import VALUE")
    written(folder / "workers", __init__="", blocks="VALUE = 3")
    assert module_from_file(str(folder / "mine.py"), "--model").VALUE == 3
