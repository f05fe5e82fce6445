"""What control groups allow, as Linux and containers lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.layout.machine.cgroups import cpu_quota


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        pytest.param("0::/", {"cpu.max": "150000 100000"}, 1.5, id="container, version 2"),
        pytest.param("0::/", {"cpu.max": "max 100000"}, None, id="no limit"),
        pytest.param("0::/", {"cpu.max": "nonsense"}, None, id="nonsense"),
        pytest.param("", {}, None, id="no control groups"),
        pytest.param(
            "0::/a/b",
            {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"},
            3.0,
            id="a limit of the group above",
        ),
        pytest.param(
            "0::/a/b",
            {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"},
            2.0,
            id="the smaller of two",
        ),
        pytest.param(
            "0::/a",
            {"b/cpu.max": "100000 100000"},
            None,
            id="the limit of a group that is not ours",
        ),
        pytest.param(
            "4:cpu,cpuacct:/job\n0::/",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
            id="version 1",
        ),
        pytest.param(
            "4:cpuacct,cpu:/docker/of-the-world-outside",
            {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
            0.5,
            id="version 1 in a container, under another name",
        ),
        pytest.param(
            "3:cpuset:/a",
            {"cpuset/a/cpu.cfs_quota_us": "1", "cpuset/a/cpu.cfs_period_us": "1"},
            None,
            id="another controller",
        ),
    ],
)
def test_the_smallest_limit_of_the_own_group_and_those_above_counts(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(own, written(tmp_path, files)) == quota
