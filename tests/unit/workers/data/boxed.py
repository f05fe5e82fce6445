"""A few images with boxes in COCO's layout, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = {3: "red", 7: "green"}


def write_boxed(root: Path, *, train: int = 4, val: int = 2, side: int = 32) -> None:
    """Images of other sizes, with a red box and every second time a green one, and their masks."""
    numbers = np.random.default_rng(3)
    (root / "annotations").mkdir(parents=True)
    for part, count in (("train2017", train), ("val2017", val)):
        (root / part).mkdir()
        told: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        for n in range(count):
            width, height = (int(v) for v in numbers.integers(side // 2, side + 1, 2))
            pixels = np.full((height, width, 3), 40, np.uint8)
            # One of those to validate on has nothing in it.
            is_empty = part == "val2017" and n == count - 1
            for colour in range(0 if is_empty else 1 + n % 2):
                w, h = (int(v) for v in numbers.integers(6, 10, 2))
                x, y = int(numbers.integers(0, width - w)), int(numbers.integers(0, height - h))
                pixels[y : y + h, x : x + w] = np.eye(3)[colour] * 255
                told["annotations"].append(
                    {
                        "id": len(told["annotations"]) + 1,
                        "image_id": 10 + n,
                        "category_id": list(NAMES)[colour],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            Image.fromarray(pixels).save(root / part / f"{n}.png")
            row = {"id": 10 + n, "file_name": f"{n}.png", "width": width, "height": height}
            told["images"].append(row)
        told["categories"] = [{"id": number, "name": name} for number, name in NAMES.items()]
        write_told(root, part, told)


def told_of(root: Path, part: str = "train2017") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"annotations/instances_{part}.json").read_text())
    return found


def write_told(root: Path, part: str, told: object) -> None:
    (root / f"annotations/instances_{part}.json").write_text(json.dumps(told))
