"""Free memory under the limits of containers, from folders written as Linux writes them."""

from __future__ import annotations

import pytest

from emscope.models.sizing.cgroups import free_in_cgroups


def group(folder, files, limit, used, stat):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(files, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in stat.items()))


FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes")
SECOND = ("memory.max", "memory.current")


@pytest.fixture
def process(tmp_path):
    return tmp_path / "process"


def test_second_version_counts_file_pages_that_can_go_as_free(tmp_path, process):
    process.write_text("0::/job\n")
    group(tmp_path / "job", SECOND, 8000, 5000, {"anon": 3000, "inactive_file": 1500})
    assert free_in_cgroups(tmp_path, process) == 4500


def test_first_version(tmp_path, process):
    process.write_text("5:devices:/\n4:memory:/docker/abc\n0::/\n")
    group(tmp_path / "memory/docker/abc", FIRST, 8000, 7000, {"inactive_file": 1, "total_inactive_file": 400})
    assert free_in_cgroups(tmp_path, process) == 1400


def test_the_tightest_of_all_groups_around_decides(tmp_path, process):
    process.write_text("0::/site/job\n")
    group(tmp_path / "site/job", SECOND, "max", 10, {})
    group(tmp_path / "site", SECOND, 500, 450, {})
    assert free_in_cgroups(tmp_path, process) == 50


def test_a_container_sees_its_own_group_as_the_root(tmp_path, process):
    process.write_text("4:memory:/host/path/of/it\n")
    group(tmp_path / "memory", FIRST, 900, 100, {})
    assert free_in_cgroups(tmp_path, process) == 800


@pytest.mark.parametrize("limit", [9223372036854771712, "max"])
def test_no_limit(tmp_path, process, limit):
    process.write_text("4:memory:/\n0::/\n")
    group(tmp_path / "memory", FIRST, limit, 5, {})
    assert free_in_cgroups(tmp_path, process) is None


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path, process):
    process.write_text("0::/\n")
    group(tmp_path, SECOND, 100, 130, {})
    assert free_in_cgroups(tmp_path, process) == 0


def test_no_groups_at_all(tmp_path, process):
    assert free_in_cgroups(tmp_path / "none", process) is None
