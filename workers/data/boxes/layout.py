"""Where annotations in COCO's form are, and the images that they are about.

DATA/annotations/instances_train2017.json    DATA/train2017/NAME.jpg
DATA/annotations/instances_val2017.json      DATA/val2017/NAME.jpg
DATA/train/_annotations.coco.json            DATA/train/NAME.jpg      (as Roboflow exports it)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundlerun.launcher.errors import ConfigError

LAYOUT = (
    "annotations in COCO's form are laid out as DATA/annotations/instances_train*.json with the "
    "images in DATA/train*, or as DATA/train/_annotations.coco.json with the images next to it, "
    "and so for val"
)
Part = Literal["train", "val"]
_BESIDE = "_annotations.coco.json"
_FOLDERS = {"train": ("train",), "val": ("val", "valid")}


@dataclass(frozen=True, slots=True)
class Paths:
    """A file of annotations, and the folder of its images."""

    annotations: Path
    images: Path


def find_part(root: Path, part: Part, prefix: str = "instances") -> Paths:
    """The files of one part of the data.

    Args:
        root: what DATA names.
        part: of the data.
        prefix: of the file's name in `annotations`, such as "person_keypoints".

    Raises:
        ConfigError: there are none, or several that it could be, or no folder of images.
    """
    files = sorted((root / "annotations").glob(f"{prefix}_{part}*.json"))
    files += [file for name in _FOLDERS[part] if (file := root / name / _BESIDE).is_file()]
    if len(files) > 1:
        names = " and ".join(repr(str(file.relative_to(root))) for file in files[:2])
        raise ConfigError(
            f"DATA {str(root)!r} has several files of annotations for {part}: {names}; leave one "
            "of them there"
        )
    if not files:
        way = ", or use --no-validate" if part == "val" else ""
        other = "" if prefix == "instances" else f", here with {prefix!r} for 'instances'"
        raise ConfigError(f"DATA {str(root)!r} has no annotations for {part}; {LAYOUT}{other}{way}")
    (file,) = files
    if file.name == _BESIDE:
        return Paths(file, file.parent)
    return Paths(file, _images_of(root, file, file.stem.removeprefix(f"{prefix}_"), part))


def _images_of(root: Path, file: Path, name: str, part: Part) -> Path:
    folders = [root / name, root / "images" / name, root / part, root / "images" / part]
    for folder in (*folders, root / "images"):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"there is no folder with the images of {str(file)!r}; give {str(folders[0])!r}, "
        f"{str(folders[1])!r} or {str(root / 'images')!r}"
    )
