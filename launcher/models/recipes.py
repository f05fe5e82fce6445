"""Which recipes there are, and the tokenizer that those of texts read: looked up without torch."""

from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.models.name import OF_TEXT, OF_TEXTS, RECIPES
from bundlerun.launcher.preflight import data_path

TOKENIZER_FILE = "tokenizer.json"
RIGHT_TOKENIZER = (
    f"give a tokenizers file such as {TOKENIZER_FILE}, or a folder that has one; nothing is "
    "downloaded"
)


def check_recipe(recipe: str, tokenizer: str) -> None:
    """Raises ConfigError where there is no such recipe, or no tokenizer for its texts.

    Args:
        tokenizer: what `--tokenizer` names; a user's own recipe may read it as it likes.
    """
    if recipe not in RECIPES and not recipe.endswith(".py"):
        raise ConfigError(
            f"unknown --recipe {recipe!r}; {nearest(recipe, RECIPES)}, or a path ending in .py"
        )
    if recipe.endswith(".py") and not Path(recipe).is_file():
        raise ConfigError(f"--recipe {recipe!r}: no such file")
    if tokenizer and recipe in (OF_TEXT, OF_TEXTS):
        tokenizer_path(tokenizer)


def tokenizer_path(given: str) -> Path:
    """The file or folder that `--tokenizer` names.

    Raises:
        ConfigError: it is not there.
    """
    path = data_path(given)
    if not path.exists():
        raise ConfigError(f"--tokenizer {given!r}: no such file or folder; {RIGHT_TOKENIZER}")
    return path
