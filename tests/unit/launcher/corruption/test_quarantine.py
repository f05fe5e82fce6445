from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.corruption.quarantine import leave_out, why_left_out


def test_a_node_is_left_out_from_when_it_is_said_until_the_file_goes(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert why_left_out("", "c") == ""
    assert why_left_out(str(folder), "c") == ""
    for _ in range(2):  # each replica says it
        leave_out(folder, "c", "rank 2 has other bits")
    assert why_left_out(str(folder), "c") == "rank 2 has other bits"
    assert why_left_out(str(folder), "b") == ""
    (file,) = folder.iterdir()
    file.unlink()
    assert why_left_out(str(folder), "c") == ""


def test_any_name_will_do_and_a_torn_file_leaves_nobody_out(tmp_path: Path) -> None:
    leave_out(tmp_path, "../a b/c", "why")
    assert why_left_out(str(tmp_path), "../a b/c") == "why"
    (file,) = tmp_path.iterdir()
    file.write_text('{"node"', encoding="utf-8")
    assert why_left_out(str(tmp_path), "../a b/c") == ""
