"""What the benchmarks share: their options, a command that is measured, the machine, and the file that figures go to."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "src/vditc/assets/digits"
VDITC = Path(sys.executable).with_name("vditc")


def options(about: str | None, cases: Iterable[str]) -> argparse.ArgumentParser:
    """--case, --out and --list, which every benchmark has."""
    ask = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--case", choices=list(cases), action="append", help="default: all")
    ask.add_argument("--out", type=Path, help="also write everything to this JSON file")
    ask.add_argument("--list", action="store_true", help="name the cases")
    return ask


def with_json(ask: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """--json, of those that print sentences."""
    ask.add_argument("--json", action="store_true", help="one JSON object a line instead of a sentence")
    return ask


def measured(command: list[str], cwd: Path = REPOSITORY) -> dict[str, Any]:
    """Run a command; wall and CPU seconds, and peak RSS in bytes of the largest process in its tree."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    seconds = time.monotonic() - began
    return {"seconds": seconds, "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "peak_rss_bytes": usage.ru_maxrss * 1024}


def version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(gpu: Any = None) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("vditc", "torch", "diffusers", "onnx", "onnxruntime", "tensorrt_rtx_cu13")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": {p: version(p) for p in packages},
        "gpu": gpu,
    }


def save(out: Path | None, rows: list[dict[str, Any]], gpu: Any = None) -> None:
    """The file of --out, with the command that makes it again; `gpu`: what they were measured on, if it was one."""
    if out is None:
        return
    command = "python " + " ".join([str(Path(sys.argv[0]).resolve().relative_to(REPOSITORY)), *sys.argv[1:]])
    data = {"date": datetime.date.today().isoformat(), "command": command, "machine": machine(gpu), "rows": rows}
    out.write_text(json.dumps(data, indent=1) + "\n")
