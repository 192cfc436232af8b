"""What the limit of a container, or of a job on a cluster, leaves of memory: Linux's control groups, of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # the first version says "no limit" with a number near 2^63


@dataclass(frozen=True, slots=True)
class _Files:
    """Names of a version's files, and the line of memory.stat with the file pages that the system drops when memory is short."""

    root: str
    limit: str
    used: str
    dropped: str


VERSIONS = (
    _Files("", "memory.max", "memory.current", "inactive_file"),
    _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_in_cgroups(mounted: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes that the tightest limit on this process leaves; None where it has none.

    Args:
        mounted: where the groups are. process: the file that says which groups this process is in.
    """
    found = [
        n for files in VERSIONS for folder in _groups(mounted / files.root, process, files.root) for n in _left(folder, files)
    ]
    return max(0, min(found)) if found else None


def _groups(root: Path, process: Path, controller: str) -> Iterator[Path]:
    """Yield the process's group and those around it. Inside a container the path may be the host's, and only the root is seen."""
    try:
        lines = [line.split(":", 2) for line in process.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    of = next((path for _, names, path in (parts for parts in lines if len(parts) == 3) if controller in names.split(",")), "/")
    folder = root / of.strip("/")
    yield from (one for one in (folder, *folder.parents) if one == root or root in one.parents)


def _left(folder: Path, files: _Files) -> Iterator[int]:
    """Yield what a group's limit leaves, if it has a limit."""
    try:
        limit, used = (int((folder / name).read_text()) for name in (files.limit, files.used))  # "max" is no limit
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if limit < UNLIMITED:
        yield limit - used + int(stat.get(files.dropped, 0))
