"""Images in class folders: ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.image_index import is_hidden, open_index, walk
from bundlerun.workers.data.jpeg import MARK, pixels_of_jpeg
from bundlerun.workers.data.pixels import as_rgb
from bundlerun.workers.data.views import Seen
from bundlerun.workers.recipe import UnreadableSample

_LAYOUT = (
    "an ImageFolder root is laid out as DATA/train/CLASS/IMAGE and DATA/val/CLASS/IMAGE (or give a "
    "folder of shards, DATA/train/*.tar or *.parquet)"
)
_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}
_NUM_SHOWN = 3
T = TypeVar("T")


class ImageSamples:
    """The images below one of a root's two folders: (image, class index), in order of their path.

    Args:
        folder: has a folder of images for each class.
        view: from a PIL image in mode RGB to a tensor.
        kept_in: where the list of images is kept for the next start; None: nowhere.
        is_fast: JPEG files come to `view` as tensors, see `jpeg.pixels_of_jpeg`.

    Raises:
        ConfigError: a class folder holds no image, or cannot be listed.
    """

    def __init__(
        self,
        folder: Path,
        view: Callable[[Any], Seen],
        kept_in: Path | None = None,
        *,
        is_fast: bool = False,
    ) -> None:
        self._images = open_index(folder, kept_in)
        self._view = view
        self._is_fast = is_fast

    def __len__(self) -> int:
        return len(self._images)

    @property
    def hidden(self) -> list[str]:
        """Hidden files and folders that were left out, where they were listed just now."""
        return self._images.hidden

    def names_digest(self) -> str:
        """For `bundlerun.workers.data.same_data`."""
        return self._images.digest()

    def __getitem__(self, index: int, /) -> tuple[Seen, int]:
        """What is seen of the image, and its class.

        Raises:
            UnreadableSample: the file is no image, is damaged or cannot be opened.
        """
        path, target = self._images[index]
        return self._view(self._load(path)), target

    def _load(self, path: str) -> Image.Image | Tensor:
        return decoded(path, partial(image_of, is_fast=self._is_fast))


def image_of(file: BinaryIO, *, is_fast: bool) -> Image.Image | Tensor:
    """The image of an open file in RGB; of a JPEG file its pixels, where it is to be fast.

    Raises:
        Exception: what libraries raise for a damaged one; see `readable`.
    """
    if is_fast:
        start = file.read(len(MARK))
        if start == MARK:
            return pixels_of_jpeg(start + file.read())
        file.seek(0)
    with Image.open(file) as image:
        return as_rgb(image)


def decoded(path: str, decode: Callable[[BinaryIO], T]) -> T:
    """What `decode` makes of a file of an image.

    Raises:
        UnreadableSample: the file is no image, is damaged or cannot be opened.
    """
    with readable(lambda: repr(path)), Path(path).open("rb") as file:
        return decode(file)


@contextmanager
def readable(place: Callable[[], str]) -> Iterator[None]:
    """What is raised in here says that the image at `place` is unreadable.

    Raises:
        UnreadableSample: the image's own fault.
    """
    try:
        yield
    # Pillow raises SyntaxError for some damaged PNG files, ValueError and EOFError for others,
    # and its own DecompressionBombError, which is none of them, for a size that is no size.
    except Exception as exc:
        # Neither is the image's fault: --skip-unreadable must not hide it.
        if isinstance(exc, MemoryError) or getattr(exc, "errno", None) in _OUT_OF_FILES:
            raise
        where = place()
        reason = getattr(exc, "strerror", None) or _without_path(str(exc), where)
        raise UnreadableSample(f"cannot read the image {where}: {reason}") from exc


def _without_path(text: str, where: str) -> str:
    """Pillow names an open file by its repr; only the words before it help."""
    first_line = (text.splitlines() or ["no reason given"])[0]
    return first_line.split(" <_io")[0].replace(f" {where}", "").rstrip(".")


def check_folder(root: Path, *, needs_val: bool) -> list[str]:
    """The classes of the training images, sorted; looks for one image, opens none.

    Args:
        root: the folder that DATA names.
        needs_val: whether it must have validation images of the same classes.

    Raises:
        ConfigError: something is not there.
    """
    try:
        return _checked_root(root, needs_val)
    except OSError as exc:
        raise ConfigError(f"cannot list {exc.filename!r}: {exc.strerror}") from exc


def _checked_root(root: Path, needs_val: bool) -> list[str]:
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise ConfigError(f"DATA {str(root)!r} {what}; {_LAYOUT}, or use synthetic")
    classes = _checked_classes(root / "train")
    if needs_val:
        if not (root / "val").is_dir():
            raise ConfigError(
                f"DATA {str(root)!r} has no folder 'val'; {_LAYOUT}, or use --no-validate"
            )
        _check_same(classes, _checked_classes(root / "val"), root)
    return classes


def _checked_classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ConfigError(f"DATA {str(folder.parent)!r} has no folder {folder.name!r}; {_LAYOUT}")
    with os.scandir(folder) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    if not classes:
        raise ConfigError(f"{str(folder)!r} has no class folders; {_LAYOUT}")
    if not any(_has_image(folder / name) for name in classes):
        raise ConfigError(
            f"no image in the {len(classes)} class folders of {str(folder)!r}; "
            f"an image ends in one of: {' '.join(IMG_EXTENSIONS)}"
        )
    return classes


def _has_image(folder: Path) -> bool:
    return any(
        name.lower().endswith(IMG_EXTENSIONS) for _, names, _ in walk(folder) for name in names
    )


def _check_same(train: list[str], val: list[str], root: Path) -> None:
    """Another set of classes would silently number the validation targets differently."""
    for names, where, other in (
        (set(train) - set(val), "train", "val"),
        (set(val) - set(train), "val", "train"),
    ):
        if names:
            shown = ", ".join(repr(name) for name in sorted(names)[:_NUM_SHOWN])
            more = ", ..." if len(names) > _NUM_SHOWN else ""
            raise ConfigError(
                f"{len(names)} classes of {str(root / where)!r} are missing in {other}: "
                f"{shown}{more}; both need the same class folders"
            )
