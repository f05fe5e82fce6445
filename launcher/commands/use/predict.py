"""`bundlerun predict`: the likeliest classes of images, by name."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bundlerun.launcher.commands.run import say
from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.commands.use.chosen import chosen, trained_config
from bundlerun.launcher.errors import EXIT_CONFIG, EXIT_DONE, ConfigError
from bundlerun.launcher.models.name import check_model
from bundlerun.launcher.preflight import check_torch

MODULE = "bundlerun.workers.use.predict"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def run(args: argparse.Namespace) -> int:
    """Prints the classes; returns the exit code.

    Raises:
        ConfigError: run, checkpoint or images cannot be.
        BundleError: it failed.
    """
    paths = run_paths(args.run_dir)
    if args.top < 1:
        raise ConfigError(f"--top {args.top} must be 1 or more")
    files = list(image_files(args.images))
    check_torch()
    checkpoint = chosen(paths, args.checkpoint)
    changes = {"shape": "1", **({"precision": args.precision} if args.precision else {})}
    config = trained_config(checkpoint, changes)
    check_model(config.model, config.recipe)
    if args.devices == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    names = checkpoint.about.get("classes") or ()
    answers: list[dict[str, Any]] = []
    for found in importlib.import_module(MODULE).predict(config, checkpoint, files, top=args.top):
        # Not before: what the run is about may have no classes at all, which is refused.
        if not (names or answers):
            say("the checkpoint keeps no names of classes: their numbers are told")
        answers.append(_document(found, names))
        if not args.json:
            print(_text(answers[-1]), flush=True)
        if found.unreadable:
            say(f"error: {found.unreadable}")
    if args.json:
        about = {"run": str(paths.root), "checkpoint": checkpoint.folder.name}
        print(json.dumps({**about, "images": answers}, indent=2, ensure_ascii=False))
    return EXIT_CONFIG if any("unreadable" in each for each in answers) else EXIT_DONE


def image_files(given: Sequence[str]) -> Iterator[str]:
    """The files that are named, and those in folders that are, in order of their paths.

    Raises:
        ConfigError: a folder has no image, or cannot be listed.
    """
    for name in given:
        folder = Path(name)
        if not folder.is_dir():
            yield name
            continue
        found = sorted(
            path
            for path in _listed(folder)
            if Path(path).suffix.lower() in _SUFFIXES and not Path(path).name.startswith(".")
        )
        if not found:
            raise ConfigError(
                f"no image in the folder {name!r}; an image ends in one of: {' '.join(_SUFFIXES)}"
            )
        yield from found


def _listed(folder: Path) -> Iterator[str]:
    def refuse(exc: OSError) -> None:
        raise ConfigError(f"cannot list {str(exc.filename)!r}: {exc.strerror}") from exc

    # Not by `rglob`, which takes a folder that it may not read for an empty one.
    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (os.path.join(place, name) for name in names)  # noqa: PTH118


def _document(found: Any, names: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401
    if found.unreadable:
        return {"file": found.file, "unreadable": found.unreadable}
    classes = [
        {"class": class_name(guess.number, names), **_numbers(guess)} for guess in found.guesses
    ]
    return {"file": found.file, "classes": classes}


def _numbers(guess: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"number": guess.number, "probability": guess.probability}


def class_name(number: int, names: Sequence[str]) -> str:
    """The name of a class; its number, where it has none."""
    return str(names[number]) if number < len(names) else str(number)


def _text(answer: dict[str, Any]) -> str:
    if "unreadable" in answer:
        return f"{answer['file']}\n  not read"
    width = max(len(each["class"]) for each in answer["classes"])
    rows = [f"  {e['class']:{width}}  {e['probability']:7.2%}" for e in answer["classes"]]
    return "\n".join([answer["file"], *rows])
