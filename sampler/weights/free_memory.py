"""The memory that this process may still take: from the machine, and from the container that it runs in."""

from collections.abc import Iterator
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_HIERARCHY = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Return the bytes available before the kernel kills a process: the least that any limit leaves."""
    return min([_fields(_MACHINE)["MemAvailable:"] * 1024, *_of_containers()])


def _of_containers() -> Iterator[int]:
    """Yield the bytes that this process's control groups (version 1 or 2) leave, from its own to the outermost."""
    lines = _GROUPS.read_text(encoding="utf-8").splitlines() if _GROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, prefix = _HIERARCHY, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, prefix = _HIERARCHY / "memory", "total_"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.strip("/")  # in a container this may be the path outside of it, which does not exist inside
        for group in (own, *own.parents):
            if group.is_relative_to(root) and (group / limit).exists():
                yield from _of_group(group / limit, group / usage, group / "memory.stat", prefix)


def _of_group(limit: Path, usage: Path, statistics: Path, prefix: str) -> Iterator[int]:
    most = limit.read_text(encoding="utf-8").strip()
    if most != "max":
        lists = _fields(statistics)
        reclaimable = lists[f"{prefix}inactive_file"] + lists[f"{prefix}active_file"]  # caches of files
        yield max(0, int(most) - int(usage.read_text(encoding="utf-8")) + reclaimable)


def _fields(path: Path) -> dict[str, int]:
    """Read a file that has a name and a number per line."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {name: int(number) for name, number, *_ in lines}
