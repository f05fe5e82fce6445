"""Recipes and tokenizers that are not there are refused before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.recipes import check_recipe
from bundlerun.workers.recipe import BUILT_IN


def test_all_recipes_that_come_with_it_are_known() -> None:
    for name in BUILT_IN:
        check_recipe(name, "")


def test_a_recipe_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown --recipe 'langage-model'; nearest: language"):
        check_recipe("langage-model", "")
    check_recipe("characters", "")
    with pytest.raises(ConfigError, match=r"--recipe .my/own.py.: no such file"):
        check_recipe("my/own.py", "")
    check_recipe(__file__, "")


def test_a_tokenizer_that_is_not_there_is_refused_where_a_recipe_reads_it(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    for recipe in ("language-model", "sequence-classification"):
        with pytest.raises(ConfigError, match=r"--tokenizer .*none.json': no such file or folder"):
            check_recipe(recipe, missing)
    # What a recipe of the user's makes of it is not known here.
    check_recipe(__file__, missing)
