"""Runs the worker process of one engine build and reads what it leaves: engine, result, log."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vditc.errors import VditcError
from vditc.files import whole_file
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.precision import Landed
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_errors import died, failed

if TYPE_CHECKING:  # a device has neither
    from vditc.adapter import InputSpec
    from vditc.profile import Profile

TIMING_CACHE = "timing.cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """Figures of a finished build; memory as the builder's log has it, None where it has none. `notes` are for the person who waits."""

    version: str
    seconds: float
    peak_rss_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    scratch_bytes: int | None
    notes: list[str] = dataclasses.field(default_factory=list)


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
    """Build in a child process. The log stays at `work`/builder.log and is quoted in errors.

    VditcError says what is known of a build that failed, or was killed; RefusedError when the runtime named what it does not take.
    """
    work.mkdir(parents=True, exist_ok=True)
    request_path, result_path, log_path = work / "request.json", work / "result.json", work / "builder.log"
    request_path.write_text(json.dumps(request.to_json(), indent=1))
    result_path.unlink(missing_ok=True)
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "vditc.runtimes.trt_worker", str(request_path), str(result_path)]
        child = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(work), check=False)
    result = json.loads(result_path.read_text()) if result_path.exists() else {}
    if error := result.get("error"):
        raise failed(error, result.get("nodes", []), log_path)
    if child.returncode or not result:
        raise died(child.returncode, request.lowered, Path(request.plan), log_path)
    text = log_path.read_text(errors="replace")
    return BuildResult(
        **result,
        activation_bytes=_logged(text, "Total Activation Memory"),
        weight_bytes=_logged(text, "Total Weights Memory"),
        scratch_bytes=_logged(text, "Max Scratch Memory"),
    )


def keep_timing_cache(work: Path, out: Path) -> None:
    """Of a finished build, also of an engine that is not what it should be: the next build is like it."""
    with whole_file(out / TIMING_CACHE) as cache:
        shutil.move(work / TIMING_CACHE, cache)


def built_facts(backend: str, arch: tuple[str, ...], plan_bytes: int, result: BuildResult, landed: Landed) -> EngineFacts:
    """Facts of an engine whose precision has been checked."""
    return EngineFacts(
        status="built",
        backend=backend,
        compute_capabilities=arch,
        plan_bytes=plan_bytes,
        **{key: value for key, value in dataclasses.asdict(result).items() if key != "notes"},
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


def _environment(work: Path) -> dict[str, str]:
    """The parser of TensorRT-RTX opens `libtensorrt_rtx.so`, a name that its wheel lacks, and aborts without it.

    A link of that name in a folder of the work directory, first in the child's search path, serves also where packages are
    read-only.
    """
    # One seed of Python's hashes: what it allocates, and where, is then the same in every build (see trt_worker).
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
    own = str(Path(__file__).parents[2])  # the worker is of the same vditc, which may be an archive that nobody installed
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))
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
