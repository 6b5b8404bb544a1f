"""What a failed build says to a person: the reason that its log, its exit status or the disk shows, and what helps."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

from vditc.build_memory import available_memory, gigabytes
from vditc.errors import VditcError

QUOTED_LINES = 6
_FULL = 1 << 20  # bytes free: a disk with fewer is full
_SMALLER = "choose a recipe of fewer bits or a larger machine"
# What TensorRT writes, and what it means. The first that is in the log counts.
_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"no space left on device",
        "a full disk",
        "free some space, or write to another disk",
    ),
    (
        r"within workspace limit|requires workspace memory",
        "no kernel within the workspace limit",
        "raise it (--engine workspace=SIZE), or leave it out",
    ),
    (
        r"error code \d+: out ?of ?memory|cuda runtime \(out of memory|cuda failure: out of memory|cudaerrormemoryallocation",
        "too little memory on the GPU",
        f"end what else runs on the GPU, limit the workspace (--engine workspace=SIZE), give a --profile with smaller clips, {_SMALLER}",
    ),
    (
        r"std::bad_alloc|memoryerror|cannot allocate memory",
        "too little memory on this machine",
        f"end what else runs, or {_SMALLER}",
    ),
)


class RefusedError(VditcError):
    """The runtime does not take nodes of the graph, or values of a type. Empty: it did not say which."""

    def __init__(self, *, nodes: tuple[str, ...], types: tuple[str, ...], found: str, wanted: str, where: str, fix: str) -> None:
        super().__init__(found=found, wanted=wanted, where=where, fix=fix)
        self.nodes, self.types = nodes, types


def failed(error: dict[str, str], nodes: list[str], log: Path) -> VditcError:
    """Of a build whose worker says why it failed, with the builder's own words."""
    text = log.read_text(errors="replace")
    reason, help_ = _reason(text)
    said = _said(text)
    found = f"{reason}: {error['found']}" if reason else error["found"]
    fields = {
        "found": f"{found} ({said})" if said else found,
        "wanted": error["wanted"],
        "where": error["where"],
        "fix": f"{help_ or error['fix']}; log: {log}",
    }
    types = tuple(dict.fromkeys(re.findall(r"HW-specific datatypes: (\w+)", text)))
    return RefusedError(nodes=tuple(nodes), types=types, **fields) if nodes or types else VditcError(**fields)


def died(code: int, lowered: str, plan: Path, log: Path) -> VditcError:
    """Of a build whose worker ended without a word."""
    text = log.read_text(errors="replace")
    reason, help_ = _reason(text)
    if not reason and shutil.disk_usage(plan.parent).free < _FULL:
        reason, help_ = "a full disk", "free some space, or write to another disk"
    if not reason and code == -signal.SIGKILL:  # a machine without memory kills so; a person may as well
        reason = f"too little memory on this machine ({gigabytes(available_memory())} are free now), or it was killed by hand"
        help_ = f"end what else runs, or {_SMALLER}"
    ending = f"the builder process {_ending(code)} ({_said(text) or _tail(text)})"
    return VditcError(
        found=f"{reason}: {ending}" if reason else ending,
        wanted="an engine",
        where=lowered,
        fix=f"{help_ + '; ' if help_ else ''}read {log}; of compile, --resume goes on from here",
    )


def _reason(log: str) -> tuple[str, str]:
    return next(((found, fix) for pattern, found, fix in _REASONS if re.search(pattern, log, re.IGNORECASE)), ("", ""))


def _said(log: str) -> str:
    """The builder's error lines, without time stamps."""
    lines = [line.partition("[E] ")[2].strip() for line in log.splitlines() if "[E] " in line]
    return " | ".join(lines[-QUOTED_LINES:])


def _tail(log: str) -> str:
    return " | ".join(line.strip() for line in log.splitlines()[-QUOTED_LINES:] if line.strip()) or "it wrote nothing"


def _ending(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
