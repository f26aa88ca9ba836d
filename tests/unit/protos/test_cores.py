"""How many cores a process may use, in files as Linux has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.process.cores import usable_core_count

TOP = {"proc/self/cgroup": "0::/\n"}
OF_VERSION_1 = {"proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/other\n0::/\n"}


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("max 100000\n", 8),
        ("200000\n", 8),
        ("nonsense", 8),
        ("0 0", 8),
        ("", 8),
    ],
)
def test_a_containers_time_bounds_the_cores(tmp_path: Path, quota: str, count: int) -> None:
    root = write(tmp_path, TOP | {"sys/fs/cgroup/cpu.max": quota})
    assert usable_core_count(root=root) == count


@pytest.mark.parametrize(
    ("outer", "inner", "count"),
    [
        ("400000 100000", "max 100000", 4),
        ("400000 100000", "200000 100000", 2),
        ("200000 100000", "400000 100000", 2),
    ],
)
def test_of_nested_groups_the_tightest_counts(
    tmp_path: Path, outer: str, inner: str, count: int
) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/cpu.max": outer,
        "sys/fs/cgroup/pod/box/cpu.max": inner,
    }
    assert usable_core_count(root=write(tmp_path, files)) == count


@pytest.mark.parametrize(
    ("folder", "quota", "count"),
    [("cpu/box", "250000\n", 3), ("cpu", "100000\n", 1), ("cpu/box", "-1\n", 8)],
)
def test_version_1_has_two_files(tmp_path: Path, folder: str, quota: str, count: int) -> None:
    files = {
        f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": quota,
        f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000\n",
    }
    assert usable_core_count(root=write(tmp_path, OF_VERSION_1 | files)) == count


def test_two_threads_of_a_core_are_one(tmp_path: Path) -> None:
    files = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}"
        for cpu in range(8)
    }
    assert usable_core_count(root=write(tmp_path, files)) == 4


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert usable_core_count(root=tmp_path) == 3


@pytest.mark.parametrize(("cores", "count"), [(6, 6), (None, 1)])
def test_without_affinity_it_is_the_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int | None, count: int
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert usable_core_count(root=tmp_path) == count
