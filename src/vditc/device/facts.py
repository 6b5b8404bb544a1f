"""What a figure measured on a device depends on beside the engine: board, releases, power mode and clocks.

A tool or file that is not there, or that says something else than is known of it, gives "unknown: " and the reason.
"""

from __future__ import annotations

import ctypes
import json
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNKNOWN = "unknown: "
_CLOCK = re.compile(r"^\s*([\w-]+):? .*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)
_SECONDS = 20  # nvpmodel and jetson_clocks answer in less than one


def device_facts(root: Path = Path("/"), run: Callable[[list[str]], str] | None = None) -> dict[str, Any]:
    """Names of facts -> what was found. `run` gives what a command says, or raises OSError; `root` is where /etc and /proc are."""
    said = run or _said
    return {
        "board": _of(lambda: _read(root / "proc/device-tree/model").rstrip("\0\n")),
        "l4t": _of(lambda: l4t(_read(root / "etc/nv_tegra_release"))),
        "jetpack": _of(lambda: jetpack(said(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"]))),
        "power_mode": _of(lambda: power_mode(said(["nvpmodel", "-q"]))),
        "clocks": _clocks(root, said),
        "cuda": _of(lambda: cuda(_read(root / "usr/local/cuda/version.json"))),
        "driver": _of(lambda: driver(_read(root / "proc/driver/nvidia/version"))),
        "driver_cuda": _of(_driver_cuda),
        "memory_bytes": _of(lambda: memory_bytes(_read(root / "proc/meminfo"))),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def l4t(text: str) -> str:
    """Release of Jetson Linux out of /etc/nv_tegra_release: "36.4.3". ValueError for another text, as of all of these."""
    match = re.search(r"^# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text, re.MULTILINE)
    return f"{_found(match, text)[1]}.{_found(match, text)[2]}"


def jetpack(text: str) -> str:
    """Version of the package nvidia-jetpack: "6.2+b77"."""
    return _found(re.fullmatch(r"\d[\w.+~-]*", text.strip()), text)[0]


def power_mode(text: str) -> str:
    """Of `nvpmodel -q`: "MAXN_SUPER (2)", the mode's name and number."""
    match = _found(re.search(r"^NV Power Mode: *(\S+)(?:\s+(\d+))?", text, re.MULTILINE), text)
    return f"{match[1]} ({match[2]})" if match[2] else match[1]


def clocks(text: str) -> dict[str, dict[str, float]]:
    """Of `jetson_clocks --show`: least, greatest and present MHz of "cpu0", "GPU" or "gpu-gpc-0", "EMC" and others."""
    # CPUs are told in kHz, everything else in Hz.
    rows = {name: [int(n) / (1e3 if name.startswith("cpu") else 1e6) for n in numbers] for name, *numbers in _CLOCK.findall(text)}
    if not rows:
        raise ValueError(f"no clocks in {text.strip()[:80]!r}")
    return {name: dict(zip(("min", "max", "now"), row, strict=True)) for name, row in rows.items()}


def cuda(text: str) -> str:
    """Of a toolkit's version.json: "12.6.11"."""
    return str(json.loads(text)["cuda"]["version"])


def driver(text: str) -> str:
    """Of /proc/driver/nvidia/version: "540.4.0"."""
    return _found(re.search(r"^NVRM version: .*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE), text)[1]


def memory_bytes(text: str) -> int:
    """Of /proc/meminfo: what the system has in all."""
    return int(_found(re.search(r"^MemTotal:\s+(\d+) kB$", text, re.MULTILINE), text)[1]) * 1024


def _clocks(root: Path, said: Callable[[list[str]], str]) -> Any:
    """Those of jetson_clocks, which only root may ask, else those that the kernel shows to everybody."""
    asked = _of(lambda: {"source": "jetson_clocks --show", **clocks(said(["jetson_clocks", "--show"]))})
    if isinstance(asked, dict):
        return asked
    shown = {}
    for names, scale, folders in (
        (("scaling_min_freq", "scaling_max_freq", "scaling_cur_freq"), 1e3, root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")),
        (("min_freq", "max_freq", "cur_freq"), 1e6, root.glob("sys/class/devfreq/*")),
    ):
        for folder in sorted(folders):
            label = folder.parent.name if folder.name == "cpufreq" else folder.name
            row = _of(lambda folder=folder, names=names, scale=scale: [int(_read(folder / n)) / scale for n in names])  # type: ignore[misc]
            if isinstance(row, list):
                shown[label] = dict(zip(("min", "max", "now"), row, strict=True))
    return {"source": f"sysfs ({asked})", **shown} if shown else asked


def _driver_cuda() -> str:
    """The newest CUDA that the driver knows: "12.6"."""
    version = ctypes.c_int()
    if status := ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
        raise ValueError(f"cuDriverGetVersion gave {status}")
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _of(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except OSError as error:
        return f"{UNKNOWN}{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except (ValueError, KeyError, TypeError) as error:
        return f"{UNKNOWN}{error}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{command[0]} said nothing in {_SECONDS} s") from error
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[:200] or f'status {done.returncode}'}")
    return done.stdout


def _found(match: re.Match[str] | None, text: str) -> re.Match[str]:
    if match is None:
        raise ValueError(f"says {text.strip()[:80]!r}")
    return match
