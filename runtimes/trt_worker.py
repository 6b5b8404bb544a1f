"""`python -m vditc.runtimes.trt_worker REQUEST.json RESULT.json`: one engine build, in a process of its own.

A builder that aborts, or that needs all memory, then takes no other work with it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

from vditc.errors import VditcError
from vditc.runtimes.trt_builder import BuildRequest, NodesError, build, inspect

_PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)
_ASK, _NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000  # personality(2)


def main(request_path: str, result_path: str) -> int:
    """Exit status 0 with facts in RESULT, 1 with {"error": {found, wanted, where, fix}} there, and "nodes" that were refused."""
    request = BuildRequest.from_json(json.loads(Path(request_path).read_text()))
    started = time.monotonic()
    trt = importlib.import_module(request.module)
    try:
        notes = build(trt, request)
        if request.inspection:
            inspect(trt, request.plan, request.inspection)
    except VditcError as error:
        fields = {"found": error.found, "wanted": error.wanted, "where": error.where, "fix": error.fix}
        nodes = error.nodes if isinstance(error, NodesError) else []
        Path(result_path).write_text(json.dumps({"error": fields, "nodes": nodes}))
        return 1
    facts = {
        "notes": notes,
        "version": trt.__version__,
        "seconds": round(time.monotonic() - started, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    Path(result_path).write_text(json.dumps(facts))
    return 0


def peak_rss_bytes() -> int:
    """Most resident memory of this process so far. getrusage would also count the parent's, from before exec."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise VditcError(
            found="no VmHWM",
            wanted="the peak resident memory",
            where="/proc/self/status",
            fix="build engines on Linux with procfs mounted",
        )
    return int(match[1]) * 1024


def die_with_parent() -> None:
    """A build whose vditc was killed would go on, and write into the file of the next one."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DIES, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def fix_addresses() -> None:
    """Start again without address space randomisation, where the system allows that.

    TensorRT-RTX orders some things by their address, so that two builds of one graph differ in a few bytes of the plan. Without
    randomisation they are equal, unless the machine is so loaded that the builder's own threads come in another order.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    current = libc.personality(_ASK)
    if current != -1 and not current & _NO_RANDOMIZE and libc.personality(current | _NO_RANDOMIZE) != -1:
        os.execv(sys.executable, [sys.executable, "-m", "vditc.runtimes.trt_worker", *sys.argv[1:]])


if __name__ == "__main__":
    die_with_parent()
    fix_addresses()
    sys.exit(main(*sys.argv[1:]))
