"""What a wheel has in it, compared with the tree; `pip wheel` itself takes too long here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINKED = ("launcher", "slurm", "splits", "workers")


def files() -> list[PurePath]:
    """What is below `bundlerun`, without what Python leaves there."""
    places = [ROOT / "bundlerun" / name for name in LINKED]
    found = [path for place in places for path in place.rglob("*") if path.is_file()]
    found += [path for path in (ROOT / "bundlerun").iterdir() if path.is_file()]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def test_the_packages_are_links_to_the_folders_at_the_top() -> None:
    for name in LINKED:
        link = ROOT / "bundlerun" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_every_folder_with_code_is_a_package_of_the_wheel() -> None:
    folders = {path.parent.as_posix().replace("/", ".") for path in files()}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_other_file_is_package_data() -> None:
    globs = PROJECT["tool"]["setuptools"]["package-data"]
    for path in files():
        if path.suffix != ".py":
            known = globs.get(".".join(path.parts[:-1]), [])
            assert any(PurePath(path.name).match(each) for each in known), path
    assert "bundlerun/slurm/bundle.sbatch" in {path.as_posix() for path in files()}
    assert "bundlerun/py.typed" in {path.as_posix() for path in files()}


def test_the_license_comes_along() -> None:
    assert PROJECT["project"]["license-files"] == ["LICENSE"]
    assert "MIT License" in (ROOT / "LICENSE").read_text()


def test_what_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([\w./]+)\)", text)
    paths = links + re.findall(r"(?:slurm|examples)/\w+\.\w+", text)
    assert "docs/slurm.md" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
