"""Whether this machine has the memory that building an engine takes, asked before the build begins.

Free is what the system calls available, and no more than what is left of every limit that a control group (a container, a batch job)
sets; pages of files that a group may drop do not count as taken. See the kernel's documentation, cgroup-v2.rst and memory.rst.
"""

from __future__ import annotations

import re
from pathlib import Path

from vditc.errors import VditcError
from vditc.progress import Progress

# Estimates of the builder's peak were 5 % below to 13 % above what was measured (docs/measurements/memory.json): a build is refused
# where even this share of the estimate is not free.
SURE = 0.85


def check_build_memory(needed: int, limit: int | None, where: str, progress: Progress) -> None:
    """VditcError when a build of about `needed` bytes has no chance in `limit` bytes (None: what is free); a note when it is close."""
    free = available_memory() if limit is None else limit
    helps = "cut the engine (--segments auto), choose a recipe of fewer bits or a larger machine"  # sizes of clips hardly matter to it
    if SURE * needed > free:
        raise VditcError(
            found=f"{gigabytes(free)} of memory {'free' if limit is None else 'allowed'}",
            wanted=f"about {gigabytes(needed)}, which the builder needs",
            where=where,
            fix=f"{helps}; or say that the build may take more (--engine memory={int(needed / 2**30) + 1}GiB)",
        )
    if needed > free:
        progress.note(f"{where}: the builder needs about {gigabytes(needed)}, {gigabytes(free)} are free; if it is killed, {helps}")


def gigabytes(count: int) -> str:
    """ "1.43 GB", "96 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take. VditcError without procfs."""
    try:
        text = (proc / "meminfo").read_text()
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise VditcError(
            found="no MemAvailable", wanted="how much memory is free", where=str(proc / "meminfo"), fix="say it: --engine memory=SIZE"
        )
    return min([int(found[1]) * 1024, *_rooms(proc, groups)])


def _rooms(proc: Path, groups: Path) -> list[int]:
    """What is left of each limit of the control groups that this process is in."""
    rooms = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.strip("/")
        # Inside of a container the group is mounted as the root, and the path may not be there.
        rooms += [room for one in (folder, *folder.parents) if one.is_relative_to(root) and (room := _room(one, *names)) is not None]
    return rooms


def _room(group: Path, most: str, now: str, droppable: str) -> int | None:
    try:
        limit, used, about = ((group / name).read_text() for name in (most, now, "memory.stat"))
    except OSError:
        return None
    if not limit.strip().isdigit():  # "max"
        return None
    found = re.search(rf"^{droppable} (\d+)$", about, re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(found[1]) if found else 0))
