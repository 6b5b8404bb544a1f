"""What a time depends on beside the program: processor, GPU, memory, clocks and power, releases."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.device.facts import UNKNOWN, device_facts
from vditc.runtimes.gpu import compute_capability, gpu_bytes, gpu_name

PACKAGES = ("vditc", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "tensorrt", "tensorrt_rtx_cu13")


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Names of facts -> what was found; what is not known here is left out. `root` is where /proc is."""
    arch = compute_capability()
    facts = {
        "gpu": gpu_name(),
        "gpu_arch": arch,
        "gpu_bytes": gpu_bytes(),
        "cpu": _cpu(root),
        "cores": len(os.sched_getaffinity(0)),
        "threads_asked": os.environ.get("OMP_NUM_THREADS"),
        "system": f"{platform.system()} {platform.machine()}",
        **device_facts(root),
    }
    return {name: fact for name, fact in facts.items() if fact is not None and not str(fact).startswith(UNKNOWN)}


def package_versions() -> Mapping[str, str]:
    """Of what takes part, as far as it is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu(root: Path) -> str | None:
    """Its name out of /proc/cpuinfo; the machine's where that has none, as on most ARM boards."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.machine() or None
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine() or None
