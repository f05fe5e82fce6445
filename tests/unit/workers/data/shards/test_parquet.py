"""Images in parquet files are read by groups of rows, and what is wrong with a file is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.order import block_order
from bundlerun.workers.data.shards import tables
from bundlerun.workers.data.shards.parquet_records import ParquetRecords
from bundlerun.workers.data.shards.tables import Table
from tests.unit.workers.data.shards.shard_files import write_parquet

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
parquet = pytest.importorskip("pyarrow.parquet")
STRUCT = pa.struct([("bytes", pa.binary())])


def image(number: int) -> bytes:
    return bytes([number]) * (number + 1)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        write_parquet(
            tmp_path / "0.parquet", [image(n) for n in range(8)], [n % 2 for n in range(8)]
        ),
        write_parquet(tmp_path / "1.parquet", [image(n) for n in range(8, 13)], [1] * 5),
    ]


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    calls: list[tuple[str, int]] = []
    honest = Table.read_group

    def counted(table: Table, number: int, column: str) -> Any:
        calls.append((table.path.name, number))
        return honest(table, number, column)

    monkeypatch.setattr(Table, "read_group", counted)
    return calls


def test_every_image_is_found_by_its_number(shards: list[Path]) -> None:
    records = ParquetRecords(shards, -1)
    assert records.blocks == [3, 3, 2, 3, 2]
    assert [records.read(n) for n in range(13)] == [image(n) for n in range(13)]
    assert records.labels.tolist() == [0, 1] * 4 + [1] * 5
    assert records.place(9) == f"in row 1 of group 0 of the shard {str(shards[1])!r}"


def test_a_group_is_decoded_once_in_an_epoch(
    shards: list[Path], num_decoded: list[tuple[str, int]]
) -> None:
    for window in (1, 4, 0):
        records = ParquetRecords(shards, window)
        num_decoded.clear()
        for index in block_order(1, 2, records.blocks, window):
            assert records.read(index) == image(index)
        assert sorted(num_decoded) == [("0.parquet", n) for n in range(3)] + [
            ("1.parquet", n) for n in range(2)
        ]


def test_the_window_is_what_fits_so_many_bytes(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(size for path in shards for _, size in Table(path).groups)
    monkeypatch.setattr("bundlerun.workers.data.shards.parquet_records.WINDOW_BYTES", size // 2)
    assert ParquetRecords(shards, -1).window == 6
    assert ParquetRecords(shards, 9).window == 9


def test_groups_that_are_too_large_are_told(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ParquetRecords(shards, -1).remarks() == []
    monkeypatch.setattr("bundlerun.workers.data.shards.parquet_records.WINDOW_BYTES", 9)
    (remark,) = ParquetRecords(shards, -1).remarks()
    assert "row_group_size=100" in remark


def test_a_process_that_was_forked_reads_with_files_of_its_own(shards: list[Path]) -> None:
    records = ParquetRecords(shards, 0)
    records.read(0)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = int([records.read(n) for n in range(13)] != [image(n) for n in range(13)])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert records.read(5) == image(5)


def test_columns_are_found_by_their_names_and_by_notes(tmp_path: Path) -> None:
    plain = pa.table({"img": [b"x", b"yy"], "labels": pa.array([1, 0], pa.int8()), "more": [0, 0]})
    parquet.write_table(plain, tmp_path / "plain.parquet")
    named = write_parquet(tmp_path / "named.parquet", [b"x"], [1], names=["cat", "dog"])
    found = ParquetRecords([tmp_path / "plain.parquet"], -1)
    assert (found.read(1), found.labels.tolist(), found.names) == (b"yy", [1, 0], [])
    assert ParquetRecords([named], -1).names == ["cat", "dog"]
    assert ParquetRecords([tmp_path / "plain.parquet", named], -1).names == ["cat", "dog"]
    other = write_parquet(tmp_path / "other.parquet", [b"x"], [1], names=["dog", "cat"])
    with pytest.raises(ConfigError, match="has other names of classes than"):
        ParquetRecords([named, other], -1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1]}, "has no column of images, only 'label'; give it a column `image` with"),
        ({"image": [b"x"]}, "has no column of classes, only 'image'; give it"),
        ({"image": ["x"], "label": [1]}, "'image' of the shard .* is of type string, and not the"),
        (
            {"image": [b"x"], "label": ["dog"]},
            "row 0 of the shard .* has 'dog' as 'label', and not",
        ),
        ({"image": [b"x", b"y"], "label": [1, None]}, "row 1 of the shard .* has None as 'label'"),
        ({"image": [b"x", None], "label": [1, 1]}, "1 of 2 images of the shard .* have no bytes"),
        (
            {"image": pa.array([{"bytes": None}], STRUCT), "label": [1]},
            "1 of 1 images of the shard",
        ),
        ({"image": [{"bytes": "text"}], "label": [1]}, "type struct<bytes: string>, and not"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int8())}, "has no rows"),
    ],
)
def test_a_file_without_images_and_classes_is_refused(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=message) as caught:
        ParquetRecords([tmp_path / "a.parquet"], -1)
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [b"x"], [1])
    whole = path.read_bytes()
    for size in (0, 3, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="cannot read the shard ") as caught:
            ParquetRecords([path], -1)
        assert "\n" not in str(caught.value)


def test_the_digest_tells_other_images_and_another_window(tmp_path: Path) -> None:
    def digest(folder: str, images: list[bytes], labels: list[int], window: int = -1) -> str:
        path = write_parquet(tmp_path / folder / "a.parquet", images, labels)
        return ParquetRecords([path], window).digest()

    first = digest("x", [b"a", b"b"], [0, 1])
    assert digest("y", [b"a", b"b"], [0, 1]) == first
    others = {digest("z", [b"aa", b"b"], [0, 1]), digest("v", [b"a", b"b"], [1, 1])}
    others.add(digest("w", [b"a", b"b"], [0, 1], window=2))
    assert len(others | {first}) == 4


def test_without_the_package_its_extra_is_named(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    without: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(tables.importlib.util, "find_spec", without)
    with pytest.raises(ConfigError, match=r"which is not installed; pip install 'bundlerun\[parqu"):
        tables.check_pyarrow(shards[0])
