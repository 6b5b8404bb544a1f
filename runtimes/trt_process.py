"""Runs the worker process of one engine build and reads what it leaves: engine, result, log."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from vditc.adapter import InputSpec
from vditc.errors import VditcError
from vditc.profile import Profile
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.precision import Landed
from vditc.runtimes.trt_builder import BuildRequest

_QUOTED_LINES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """Figures of a finished build; memory as the builder's log has it, None where it has none."""

    version: str
    seconds: float
    peak_rss_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    scratch_bytes: int | None


def shapes(inputs: tuple[InputSpec, ...], profile: Profile) -> dict[str, list[list[int]]]:
    """Least, best and greatest shape of every input."""
    sizes = [{axis: getattr(r, end) for axis, r in profile.axes.items()} for end in ("min", "opt", "max")]
    if unknown := sorted({d for spec in inputs for d in spec.dims if isinstance(d, str)} - set(profile.axes)):
        raise VditcError(
            found=f"no range for {', '.join(unknown)}",
            wanted="a range for every named axis of the inputs",
            where="the profile",
            fix="add AXIS=MIN:OPT:MAX to --profile",
        )
    return {spec.name: [list(spec.shape(s)) for s in sizes] for spec in inputs}


def run_build(request: BuildRequest, work: Path) -> BuildResult:
    """Build in a child process. The log stays at `work`/builder.log and is quoted in errors."""
    work.mkdir(parents=True, exist_ok=True)
    request_path, result_path, log_path = work / "request.json", work / "result.json", work / "builder.log"
    request_path.write_text(json.dumps(request.to_json(), indent=1))
    result_path.unlink(missing_ok=True)
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "vditc.runtimes.trt_worker", str(request_path), str(result_path)]
        child = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(work), check=False)
    text = log_path.read_text(errors="replace")
    result = json.loads(result_path.read_text()) if result_path.exists() else {}
    if error := result.get("error"):
        said = _said(text)
        raise VditcError(
            found=f"{error['found']} ({said})" if said else error["found"],
            wanted=error["wanted"],
            where=error["where"],
            fix=f"{error['fix']}; log: {log_path}",
        )
    if child.returncode or not result:
        raise VditcError(
            found=f"the builder process {_ending(child.returncode)} ({_said(text) or _tail(text)})",
            wanted="an engine",
            where=request.lowered,
            fix=f"read {log_path}; a killed process usually means too little memory",
        )
    return BuildResult(
        **result,
        activation_bytes=_logged(text, "Total Activation Memory"),
        weight_bytes=_logged(text, "Total Weights Memory"),
        scratch_bytes=_logged(text, "Max Scratch Memory"),
    )


def built_facts(backend: str, arch: tuple[str, ...], plan_bytes: int, result: BuildResult, landed: Landed) -> EngineFacts:
    """Facts of an engine whose precision has been checked."""
    return EngineFacts(
        status="built",
        backend=backend,
        compute_capabilities=arch,
        plan_bytes=plan_bytes,
        **dataclasses.asdict(result),
        constant_bytes=landed.constant_bytes,
        gemms=landed.gemms,
        attentions=landed.attentions,
        plugins=landed.plugins,
        plugin_operators=landed.plugin_operators,
        layers=landed.layers,
        merged=landed.merged,
        fused=landed.fused,
        cut=landed.cut,
    )


def _logged(log: str, title: str) -> int | None:
    match = re.search(rf"{title}: (\d+) bytes", log)
    return int(match[1]) if match else None


def _said(log: str) -> str:
    """The builder's error lines, without time stamps."""
    lines = [line.partition("[E] ")[2].strip() for line in log.splitlines() if "[E] " in line]
    return " | ".join(lines[-_QUOTED_LINES:])


def _tail(log: str) -> str:
    return " | ".join(line.strip() for line in log.splitlines()[-_QUOTED_LINES:] if line.strip()) or "it wrote nothing"


def _ending(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _environment(work: Path) -> dict[str, str]:
    """The parser of TensorRT-RTX opens `libtensorrt_rtx.so`, a name that its wheel lacks, and aborts without it.

    A link of that name in a folder of the work directory, first in the child's search path, serves also where packages are
    read-only.
    """
    # One seed of Python's hashes: what it allocates, and where, is then the same in every build (see trt_worker).
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return environment
    folder = work / "libraries"
    folder.mkdir(exist_ok=True)
    link = folder / "libtensorrt_rtx.so"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(spec.submodule_search_locations[0]) / "libtensorrt_rtx.so.1")
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return environment
