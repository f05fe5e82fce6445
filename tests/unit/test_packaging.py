"""What a wheel has in it, compared with the tree; `pip wheel` itself takes too long here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("launcher", "slurm", "splits", "workers")


def files() -> list[PurePath]:
    """What is below the packages, without what Python leaves there."""
    found = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def test_every_folder_with_code_is_a_package_of_the_wheel() -> None:
    folders = {path.parent.as_posix().replace("/", ".") for path in files()}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_other_file_is_package_data() -> None:
    globs = PROJECT["tool"]["setuptools"]["package-data"]
    for path in files():
        if path.suffix != ".py":
            known = globs.get(".".join(path.parts[:-1]), [])
            assert any(PurePath(path.name).match(each) for each in known), path
    assert "slurm/bundle.sbatch" in {path.as_posix() for path in files()}
    assert all("py.typed" in globs[name] for name in PACKAGES)


def test_the_license_comes_along() -> None:
    assert PROJECT["project"]["license-files"] == ["LICENSE"]
    assert "MIT License" in (ROOT / "LICENSE").read_text()


def test_what_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([\w./]+)\)", text)
    paths = links + re.findall(r"(?:slurm|examples)/\w+\.\w+", text)
    assert "docs/slurm.md" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
