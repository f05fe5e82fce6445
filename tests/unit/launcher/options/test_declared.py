import argparse
from dataclasses import dataclass

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.declared import (
    add_options,
    argv_of,
    groups_of,
    option,
    resolve,
    text_list,
    yes_or_no,
)
from bundlerun.launcher.options.parser import kebab


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    size: int = option(3, "how many, at 100 %", group="numbers", parse=int)
    names: tuple[str, ...] = option((), "which", group="texts", parse=text_list)
    loud: bool = option(True, "shout", group="texts", parse=yes_or_no)


def parsed(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_options(parser, Sample)
    return vars(parser.parse_args(words))


def test_help_shows_group_text_and_default() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Sample)
    text = parser.format_help()
    assert "numbers:" in text
    assert "how many, at 100 % (default: 3)" in text
    assert "--no-loud" in text


def test_each_value_remembers_its_source() -> None:
    resolved = resolve(
        Sample,
        parsed("--size=1"),
        environ={"BUNDLERUN_NAMES": "a,b"},
        toml={"loud": False, "size": 9},
        toml_name="f.toml",
    )
    assert resolved.value == Sample(size=1, names=("a", "b"), loud=False)
    assert resolved.sources == {
        "size": "option",
        "names": "environment BUNDLERUN_NAMES",
        "loud": "f.toml",
    }


def test_options_that_nobody_gave_stay_out_of_the_namespace() -> None:
    assert parsed() == {}


def test_argv_leaves_defaults_out_and_turns_switches_off() -> None:
    assert argv_of(Sample(size=3, names=("x", "y"), loud=False)) == ["--names=x,y", "--no-loud"]


@pytest.mark.parametrize("value", [True, "four", 4.5])
def test_a_toml_value_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"size .* is not a whole number"):
        resolve(Sample, {}, environ={}, toml={"size": value})


def test_only_the_names_of_options_are_rewritten() -> None:
    words = ["--a_b=c_d", "e_f", "--g_h", "-i_j"]
    assert kebab(words) == ["--a-b=c_d", "e_f", "--g-h", "-i_j"]


def test_groups_keep_the_order_of_the_fields() -> None:
    assert groups_of(Sample) == {"numbers": ["size"], "texts": ["names", "loud"]}
