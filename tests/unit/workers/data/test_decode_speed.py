"""How many images a core decodes, on a clock of the test's own."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from benchmarks.workload.pictures import picture
from bundlerun.workers.data.decode_speed import decode_speed


def images(folder: Path, number: int) -> list[str]:
    paths = [folder / f"{i}.jpg" for i in range(number)]
    for path in paths:
        picture(64, 48, seed=1).save(path)
    return list(map(str, paths))


def test_it_decodes_until_its_time_is_over(tmp_path: Path) -> None:
    paths, ticks = images(tmp_path, 4), count()
    answer = decode_speed(paths, seconds=1.5, clock=lambda: float(next(ticks)))
    assert answer == {"images": 2, "seconds": 2.0, "why_not": ""}
    assert decode_speed([])["images"] == 0


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    paths = images(tmp_path, 1)
    (tmp_path / "bad.jpg").write_text("no image")
    answer = decode_speed([*paths, str(tmp_path / "bad.jpg")])
    assert answer["images"] == 1
    assert "bad.jpg" in str(answer["why_not"])
