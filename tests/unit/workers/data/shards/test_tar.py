"""The samples of a .tar are found by its headers, once, and what is wrong with one is one line."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.shards import tar_index
from bundlerun.workers.data.shards.tar_index import open_indexes, scan
from bundlerun.workers.data.shards.tar_members import BLOCK, members
from bundlerun.workers.data.shards.tar_records import TarRecords
from tests.unit.workers.data.shards.shard_files import JPEG, LONG_AGO_S, sample, write_tar

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "a" * 90 + "/" + "b" * 90 + "/é"


def found(path: Path) -> list[tuple[bytes, int]]:
    records = TarRecords([path], None)
    return [(records.read(n), int(records.labels[n])) for n in range(len(records.labels))]


@pytest.mark.parametrize("form", FORMS)
def test_members_are_those_of_the_standard_library(form: str, tmp_path: Path) -> None:
    files = {"a.jpg": b"x" * 511, "b": b"", "c/d.txt": b"y" * 512, f"{LONG}.jpg": b"z" * 1500}
    if form == "ustar":
        files = {name.replace("é", "e"): data for name, data in files.items()}
    path = write_tar(tmp_path / "a.tar", files, FORMS[form])
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset_data, m.size) for m in tar]
    assert [tuple(m[:3]) for m in members(path)] == wanted
    assert [m.begin for m in members(path)] == [data[:BLOCK] for data in files.values()]


def test_folders_and_links_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" * (120 if name == "l.jpg" else 0)
            tar.addfile(info)
        info = tarfile.TarInfo("f")
        tar.addfile(info)
    assert [m.name for m in members(path)] == ["f"]


def test_a_large_file_and_binary_sizes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    size = 9 << 30  # more than the octal digits hold
    info = tarfile.TarInfo("large.jpg")
    info.size = size
    with path.open("wb") as file:  # sparse: takes no room
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(BLOCK + size)
        file.write(bytes(2 * BLOCK))
    assert [tuple(m[:3]) for m in members(path)] == [("large.jpg", BLOCK, size)]


def test_the_name_up_to_the_first_dot_makes_a_sample(tmp_path: Path) -> None:
    files = {
        "./x.y/1.JPG": b"one",
        "./x.y/1.Cls": b" 007\n",
        "./x.y/1.seg.png": b"other",
        "._2.jpg": b"hidden",
        "readme": b"no dot",
        "2.json": b'{"label": 5, "is": [1]}',
        "2.txt": b"text",
        "2.webp": b"two",
        "3.png": b"three",
        "3.json": b'{"cls": 3, "more": "' + b"m" * 2000 + b'"}',
    }
    path = write_tar(tmp_path / "a.tar", files)
    assert found(path) == [(b"one", 7), (b"two", 5), (b"three", 3)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no samples; a sample is NAME.jpg"),
        ({"a.cls": b"1"}, "the sample 'a' of the shard .* has no image, only .cls; a sample is"),
        ({"a.jpg": JPEG, "a.txt": b"1"}, r"'a' .* has no class \(.cls or .json\), only .jpg, .txt"),
        ({"a.jpg": JPEG, "a.png": JPEG, "a.cls": b"1"}, "has 2 images, only .jpg, .png, .cls"),
        ({"a.jpg": JPEG, "a.cls": b"dog"}, "'a.cls' of the shard .* is 'dog', and not a whole nu"),
        ({"a.jpg": JPEG, "a.cls": b"1.5"}, "is '1.5', and not a whole number, the class of its"),
        ({"a.jpg": JPEG, "a.cls": b"9" * 30}, "and not a whole number, the class of its image"),
        ({"a.jpg": JPEG, "a.json": b"[1]"}, r"is '\[1\]', and not a whole number as 'label' or"),
        ({"a.jpg": JPEG, "a.json": b"{"}, "is '{', and not a whole number as 'label' or 'cls'"),
        ({"a.jpg": JPEG, "a.json": b'{"label": true}'}, "and not a whole number as 'label'"),
        ([("a.jpg", JPEG), ("a.JPG", JPEG)], "the sample 'a' of the shard .* has two files .jpg"),
        ([("a.jpg", JPEG), ("b.cls", b"1"), ("a.cls", b"1")], "'a' .* has no class"),
    ],
    ids=str,
)
def test_a_sample_that_lacks_something_is_named(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(ConfigError, match=message) as caught:
        scan(path)
    assert "\n" not in str(caught.value)


def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a", 1, b"x" * 700) | sample("b", 2))
    whole = path.read_bytes()
    data = whole.rstrip(b"\0")
    end = -(-len(data) // BLOCK) * BLOCK
    for size in (0, 1, 511, 512, 513, 1000, 1536, 2048, 2100, end - 1, end, end + 511):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"cannot be used: it (is empty|ends at|is cut off)"):
            scan(path)
    path.write_bytes(whole[: end + BLOCK])
    assert scan(path).shape == (3, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: b"PK" + whole[2:], "it is no .tar; copy it again"),
        (lambda whole: whole[:1024] + b"x" * 512 + whole[1536:], "at byte 1024 is no header"),
    ],
)
def test_a_file_that_is_no_tar_is_refused(damage: object, message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a", 1))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message):
        scan(path)


class TestKeptIndexes:
    @pytest.fixture
    def num_scans(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        calls: list[Path] = []

        def counted(path: Path) -> tar_index.Index:
            calls.append(path)
            return scan(path)

        monkeypatch.setattr(tar_index, "scan", counted)
        return calls

    def test_a_shard_is_scanned_once_until_it_changes(
        self, num_scans: list[Path], tmp_path: Path
    ) -> None:
        one = write_tar(tmp_path / "1.tar", sample("a", 1) | sample("b", 0))
        two = write_tar(tmp_path / "2.tar", sample("c", 2))
        kept = tmp_path / "kept"
        first = open_indexes([one, two], kept)
        again = open_indexes([one, two], kept)
        assert sorted(num_scans) == [one, two]
        assert [index.tolist() for index in again] == [index.tolist() for index in first]
        write_tar(two, sample("c", 2) | sample("d", 3))
        os.utime(two, (LONG_AGO_S, LONG_AGO_S + 1))
        assert [index.shape[1] for index in open_indexes([one, two], kept)] == [2, 2]
        assert num_scans[2:] == [two]

    def test_one_that_changed_just_now_is_not_kept(
        self, num_scans: list[Path], tmp_path: Path
    ) -> None:
        path = write_tar(tmp_path / "1.tar", sample("a", 1))
        os.utime(path)
        for _ in range(2):
            open_indexes([path], tmp_path / "kept")
        assert len(num_scans) == 2

    def test_what_is_left_half_is_found_again(self, num_scans: list[Path], tmp_path: Path) -> None:
        path = write_tar(tmp_path / "1.tar", sample("a", 1) | sample("b", 0))
        wanted = open_indexes([path], tmp_path / "kept")[0].tolist()
        (kept,) = (tmp_path / "kept").iterdir()
        whole = kept.read_bytes()
        for damaged in (b"", whole[:20], whole[:-24], whole[:-1] + b"\x07", b"x" + whole[1:]):
            kept.write_bytes(damaged)
            assert open_indexes([path], tmp_path / "kept")[0].tolist() == wanted
            assert kept.read_bytes() == whole
        assert len(num_scans) == 6

    def test_a_crash_leaves_no_index_and_no_other_trace_that_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_tar(tmp_path / "1.tar", sample("a", 1))

        def dies(_: int) -> None:
            raise KeyboardInterrupt  # as late as can be: the next line puts it in place

        monkeypatch.setattr(os, "fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            open_indexes([path], tmp_path / "kept")
        assert list((tmp_path / "kept").iterdir()) == []

    def test_a_full_disk_ends_no_run(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "1.tar", sample("a", 1))
        (tmp_path / "kept").write_text("a file where the folder would be")
        assert open_indexes([path], tmp_path / "kept")[0].shape == (3, 1)


def test_the_digest_tells_other_samples_and_not_another_place(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "x" / "1.tar", sample("a", 1))
    same = write_tar(tmp_path / "y" / "1.tar", sample("a", 1))
    other = write_tar(tmp_path / "z" / "1.tar", sample("a", 2))
    digests = [TarRecords([path], None).digest() for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_more_shards_than_may_be_open_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundlerun.workers.data.shards.tar_records._MOST_OPEN", 2)
    shards = [write_tar(tmp_path / f"{n}.tar", sample("a", n, bytes([n]))) for n in range(5)]
    records = TarRecords(shards, None)
    for _ in range(2):
        assert [records.read(n) for n in range(5)] == [bytes([n]) for n in range(5)]
    # Only these shards: what earlier tests left open is closed whenever it is collected.
    targets = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert sum(shard.resolve() in targets for shard in shards) == 2


def test_an_image_is_named_with_its_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "1.tar", sample("in/a", 1))
    assert TarRecords([path], None).place(0) == f"'in/a.jpg' of the shard {str(path)!r}"
