import pytest

from bundlerun.launcher.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    NodeError,
    meaning_of,
    nearest,
)


def test_each_kind_of_error_has_its_exit_code() -> None:
    kinds: list[type[BundleError]] = [BundleError, ConfigError, NodeError, CheckpointError]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("name", "valid", "text"),
    [
        ("resnet81", ["vgg16", "resnet18"], "nearest: resnet18"),
        ("zzz", ["a", "b"], "valid: a, b"),
        ("zzz", list("abcdefg"), "valid: a, b, c, d, e, ... (7 in all)"),
        ("zzz", [], "there is no valid one"),
    ],
)
def test_nearest_names_what_is_close_else_the_first_few(
    name: str, valid: list[str], text: str
) -> None:
    assert nearest(name, valid) == text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "done"),
        (3, "this machine is not fit"),
        (
            75,
            "stopped before its end, or its state is not on disk; the same command with "
            "--run-dir resumes it",
        ),
        (143, "ended at once by SIGTERM"),
        (9, "the run failed"),
    ],
)
def test_an_exit_code_has_a_meaning(code: int, text: str) -> None:
    assert meaning_of(code) == text
