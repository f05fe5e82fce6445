"""Every command in README and docs is one that its program takes, with the options as typed.

Code that is Python is run by the tests beside this one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from bundlerun.launcher.cli import COMMANDS, command_parser, our_words
from bundlerun.launcher.commands.run import read_configs
from bundlerun.launcher.options.parser import parsed
from bundlerun.launcher.train_argv import read_train_argv
from tests.unit.docs.pages import PAGES, ROOT, WRONG, inline, typed_lines, words_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
OURS_IN_DOCS = {"train.py": "bring your own", "FILE.py": "bring your own"}
LAUNCHERS = ("srun", "mpirun", "accelerate", "docker", "sky", "torchx", "sbatch")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that pages tell to write."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", tutorial, re.MULTILINE | re.DOTALL)
    (tmp_path / "digits.toml").write_text(block)
    (tmp_path / "run.toml").write_text("batch-size = 64\n")
    monkeypatch.chdir(tmp_path)


@cache
def parser_of(command: str):  # noqa: ANN201
    return command_parser(command)


def check_bundlerun(words: Sequence[str], environ: dict[str, str]) -> None:
    """`bundlerun ...` is parsed, and for a run all values are looked at."""
    if not words or words[0] in ("--help", "--version", "COMMAND"):
        return
    assert words[0] in COMMANDS, words[0]
    if len(words) == 1 or words[1] in ("--help", "--help-all"):
        return
    args = parsed(parser_of(words[0]), our_words(words))
    if words[0] == "run" and not args.like:
        # Pages leave out what does not matter there.
        args.data = args.data or "DATA"
        read_configs(args, environ)


def check_worker(words: Sequence[str], environ: dict[str, str]) -> None:
    if "--help" not in words:
        read_train_argv([*words, *([] if words and words[-1][0] != "-" else ["DATA"])], environ)


def check_torchrun(words: Sequence[str], environ: dict[str, str]) -> None:
    from torch.distributed.run import get_args_parser

    if len(words) < 2:
        return
    # Where only options are shown, the program is left out.
    options = [word for word in words if word.startswith("-")]
    args = get_args_parser().parse_args([*words, "train.py"] if options == [*words] else words)
    if args.training_script == "bundlerun.workers.train":
        check_worker(args.training_script_args, environ)
    elif args.training_script != "bundlerun.warm":
        check_file(args.training_script)


def check_file(name: str) -> None:
    assert name in OURS_IN_DOCS or (ROOT / name).exists(), f"there is no {name}"


def check_python(words: Sequence[str], environ: dict[str, str]) -> None:
    match list(words):
        case ["-m", "bundlerun.workers.train", *rest]:
            check_worker(rest, environ)
        case ["-m", module, *_]:
            path = ROOT / module.replace(".", "/").replace("bundlerun/", "", 1)
            known = (path, path.with_suffix(".py"), ROOT / "bundlerun" / f"{path.name}.py")
            assert module in ("pip", "build") or any(each.exists() for each in known), module
        case [file, *_] if file.endswith(".py"):
            check_file(file)


def check_make(words: Sequence[str], environ: dict[str, str]) -> None:
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"make {target}"


def check_pip(words: Sequence[str], environ: dict[str, str]) -> None:
    for word in words:
        if match := re.fullmatch(r"(?:\.|bundlerun)\[(.*)\]", word):
            extras = PROJECT["project"]["optional-dependencies"]
            assert set(match[1].split(",")) <= extras.keys(), word


def check_launcher(words: Sequence[str], environ: dict[str, str]) -> None:
    """What another program starts is a command of ours, and files that it is given are there."""
    for word in words:
        if re.match(r"(examples|slurm)/", word):
            check_file(word.partition(":")[0])
    if any(word.endswith(".sbatch") for word in words):
        place = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        check_bundlerun(["run", *words[place + 1 :]], environ)
    elif "torchx_component.py:bundle" in " ".join(words):
        check_bundlerun(["run", *words[words.index("--") + 1 :]], environ)
    elif "bundlerun.workers.train" in words:
        check_worker(
            [w for w in words[words.index("bundlerun.workers.train") + 1 :] if w != "--"], environ
        )
    elif "bundlerun" in words[1:] and words[words.index("bundlerun") - 1] not in ("-t", "-f", "-n"):
        check_bundlerun(words[words.index("bundlerun") + 1 :], environ)


CHECKS: dict[str, Callable[[Sequence[str], dict[str, str]], None]] = {
    "bundlerun": check_bundlerun,
    "torchrun": check_torchrun,
    "python": check_python,
    "python3": check_python,
    "make": check_make,
    "pip": check_pip,
    **dict.fromkeys(LAUNCHERS, check_launcher),
}


def check(line: str) -> bool:
    """Whether the line is a command that is known here; raises where its program refuses it."""
    environ = {}
    while match := re.match(r"([A-Z][A-Z_0-9]*)=(\S+)\s+", line):
        environ[match[1]] = match[2]
        line = line[match.end() :]
    if line.split(" ")[0] not in CHECKS:
        return False
    first, *words = words_of(re.split(r" (?:\||&&|>|2>) ?", line)[0])
    CHECKS[first](words, environ)
    return True


RIGHT = [page for page in PAGES if page != WRONG]


@pytest.mark.parametrize("page", RIGHT, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_are_taken_by_their_programs(page: Path) -> None:
    text = page.read_text()
    lines = [*typed_lines(text), *(code for code in inline(text) if " " in code)]
    wrong = {}
    for line in lines:
        try:
            check(line)
        except (Exception, SystemExit) as exc:
            wrong[line] = repr(exc)
    assert wrong == {}


def test_commands_are_found_in_pages() -> None:
    lines = [line for page in RIGHT for line in typed_lines(page.read_text())]
    assert sum(map(check, lines)) > 60
    assert check("torchrun --nnodes=2:4 -m bundlerun.workers.train --shape 1,1 DATA")


@pytest.mark.parametrize(
    "line",
    [
        "bundlerun run --shap 1,1 DATA",
        "bundlerun run --shape one DATA",
        "bundlerun trian DATA",
        "bundlerun run --config missing.toml",
        "torchrun --nprocs=2 -m bundlerun.workers.train DATA",
        "torchrun --nproc-per-node=2 -m bundlerun.workers.train --epoch 2 DATA",
        "python -m bundlerun.workers.trian DATA",
        "python examples/missing.py",
        "make dem",
        "pip install 'bundlerun[tensorbord]'",
        "sbatch slurm/bundle.sbatch --modle resnet101 DATA",
        "srun --nodes=2 bundlerun run --devises cpu DATA",
        "docker run --rm bundlerun run --slot 2 synthetic",
    ],
)
def test_a_wrong_command_is_seen(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(line)
