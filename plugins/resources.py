"""What ptxas says of each kernel: registers, stack, spills (`-Xptxas -v`)."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterable

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(?:sm_)?([^']+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_OF = re.compile(r"Function properties for (\S+)")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of one kernel on one architecture; bytes of stack and spills are of one thread, those of static shared memory of one block."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def usages(report: Iterable[str]) -> list[Usage]:
    """Of every kernel in a report of ptxas. Kernels are named as C++ reads where c++filt is there. ValueError where a report lacks a part."""
    found: list[Usage] = []
    entry: re.Match[str] | None = None
    stack: re.Match[str] | None = None
    inside = False
    for line in report:
        if begins := _ENTRY.search(line):
            entry, stack, inside = begins, None, False
        elif of := _OF.search(line):
            inside = entry is not None and of[1] == entry[1]
        elif inside and (said := _STACK.search(line)):
            stack = said
        elif entry and (used := _USED.search(line)):
            if stack is None:
                raise ValueError(f"ptxas says no stack frame of {entry[1]} for {entry[2]}")
            shared = _SHARED.search(line)
            sizes = (int(used[1]), int(stack[1]), int(stack[2]), int(stack[3]), int(shared[1]) if shared else 0)
            found.append(Usage(entry[1], entry[2], *sizes))
            entry = None
    names = readable([u.kernel for u in found])
    return [dataclasses.replace(u, kernel=name) for u, name in zip(found, names, strict=True)]


def readable(mangled: list[str]) -> list[str]:
    """Names as C++ reads."""
    filt = shutil.which("c++filt")
    if filt is None or not mangled:
        return mangled
    run = subprocess.run([filt], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return run.stdout.splitlines()
