"""Images, and shards with the same images, for tests."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

LONG_AGO_S = 1_700_000_000
JPEG = b"\xff\xd8\xff not decoded"


def jpeg(seed: int, side: int = 24) -> bytes:
    """A small file of an image that differs from others."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + seed % 5, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def sample(name: str, label: object, image: bytes = JPEG) -> dict[str, bytes]:
    """The files of a sample."""
    return {f"{name}.jpg": image, f"{name}.cls": str(label).encode()}


def write_tar(
    path: Path,
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    form: int = tarfile.DEFAULT_FORMAT,
) -> Path:
    """A .tar of files, old enough for its index to be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    return path


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    names: Sequence[str] = (),
    group: int = 3,
) -> Path:
    """Images as the package datasets writes them, without it."""
    pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(names)} if names else {"_type": "Value"},
    }
    table = pa.table(
        {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    )
    if names:
        import json

        notes = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": notes})
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=group)
    return path


def write_folder(root: Path, part: str, images: Sequence[bytes], labels: Sequence[int]) -> None:
    """The same images as an ImageFolder; labels are in ascending order, as its are."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / part / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.jpg").write_bytes(image)


def write_shards(
    root: Path, part: str, images: Sequence[bytes], labels: Sequence[int], each: int
) -> None:
    """The same images, in this order, in .tar files of `each`."""
    for first in range(0, len(images), each):
        files = {
            name: data
            for n in range(first, min(first + each, len(images)))
            for name, data in sample(f"{n:04d}", labels[n], images[n]).items()
        }
        write_tar(root / part / f"{first:04d}.tar", files)
