"""Writes scikit-learn's handwritten digits as an ImageFolder: 1797 PNG images of 8x8 pixels.

    python examples/write_digits.py [FOLDER]     FOLDER/{train,val}/{0..9}/0000.png

Nothing is downloaded: the images come with scikit-learn.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DEFAULT_ROOT = "data/digits"
VAL_EVERY = 5
"""Every fifth image of a class is held out: 20 %, spread evenly over the writers."""


def split_of(position: int) -> str:
    """Which part the image at `position` (from 0) inside its class belongs to."""
    return "val" if position % VAL_EVERY == VAL_EVERY - 1 else "train"


def write_digits(root: Path) -> bool:
    """Writes the images below `root`, all of them or none.

    Returns:
        False where `root` was there already; it is then left alone.
    """
    if root.exists():
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        beside.chmod(0o755)
        _write_images(beside)
        return _rename(beside, root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_images(root: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    num_written = dict.fromkeys(range(10), 0)
    for pixels, target in zip(digits.images, digits.target.tolist(), strict=True):
        position = num_written[target]
        num_written[target] += 1
        folder = root / split_of(position) / str(target)
        folder.mkdir(parents=True, exist_ok=True)
        grey = (pixels * (255 / 16)).round().astype("uint8")  # a pixel is 0 to 16
        Image.fromarray(grey).save(folder / f"{position:04d}.png")


def _rename(beside: Path, root: Path) -> bool:
    """Moves the finished folder into place; False where another process was faster."""
    try:
        beside.rename(root)
    except OSError:
        if root.exists():
            return False
        raise
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write the handwritten digits as PNG images.")
    parser.add_argument("folder", nargs="?", default=DEFAULT_ROOT, help="(default: %(default)s)")
    root = Path(parser.parse_args(argv).folder)
    try:
        written = write_digits(root)
    except ImportError as exc:
        print(
            f"error: {exc.name} is missing; install it with pip install 'bundlerun[demo]'",
            file=sys.stderr,
        )
        return 2
    except OSError as exc:
        print(f"error: cannot write {str(root)!r}: {exc.strerror}", file=sys.stderr)
        return 3
    print(f"{root}: {'written' if written else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
