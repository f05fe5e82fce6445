from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.history import read_last_rows, read_rows, row_of

LINES = b'{"step": 1}\n{"step": 2}\n{"st\n[3]\n\xff\n{"step": 4}\n{"step": 5'


def test_what_is_cut_short_or_no_object_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(LINES)
    assert read_rows(file) == [{"step": 1}, {"step": 2}, {"step": 4}]


@pytest.mark.parametrize(
    ("num_bytes", "steps"), [(0, []), (25, [4]), (len(LINES) - 3, [2, 4]), (10**6, [1, 2, 4])]
)
def test_the_last_lines_may_begin_in_the_middle_of_one(
    tmp_path: Path, num_bytes: int, steps: list[int]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(LINES)
    assert [row["step"] for row in read_last_rows(file, num_bytes)] == steps


def test_without_a_file_there_are_no_lines(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "rows.jsonl") == read_last_rows(tmp_path / "rows.jsonl", 100) == []
    with pytest.raises(IsADirectoryError):
        read_rows(tmp_path)
    assert read_last_rows(tmp_path, 100) == []


def test_a_line_without_an_object_says_nothing() -> None:
    assert row_of(b"3\n") == row_of(b"") == row_of(b'{"a"') == {}
