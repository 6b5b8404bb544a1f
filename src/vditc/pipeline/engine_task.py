"""One engine from files, in a process of its own: `python -m vditc.pipeline.engine_task REQUEST.json RESULT.json`.

A local build and a worker of a cluster run the same. Request and result are JSON. The process ends when the one that started it does,
and takes its builder along.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from vditc.build_options import BuildOptions
from vditc.errors import InputError, PrecisionError, VditcError
from vditc.files import data_digest, sha256, write_text
from vditc.target import Target

_PR_SET_PDEATHSIG = 1  # prctl(2)
GRAPHS = "graphs"  # folder of a result: what comes into the bundle beside the lowered graph
Files = Mapping[str, Mapping[str, Any]]  # name -> {"bytes", "sha256"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What to build. Names are relative to `root`, the folder of a bundle or of a component in it, or a copy of what is needed of it.

    `target`: built-in, or the path of its file, in another of its types with `compute`, and `attention` its type of attention where that
    is another; `target_digest`: of what these say, so that a worker with other targets is noticed. `options`: of `vditc.build_options`.
    `inputs`: files that are read. `out`: a new folder, which stands for ROOT/engines: as deep in `root`, and with the same folders in it,
    since a script names other files of the bundle. `memory`: the estimate of what the engine needs (`vditc.memory`), for a device.
    """

    root: str
    target: str
    target_digest: str
    attention: str
    lowered: str
    library: str | None
    profile: Mapping[str, list[int]]
    options: str
    inputs: Files
    out: str
    compute: str | None = None
    memory: Mapping[str, int] | None = None
    vditc: str = dataclasses.field(default_factory=lambda: importlib.metadata.version("vditc"))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, with another vditc perhaps: InputError."""
        if (own := importlib.metadata.version("vditc")) != data.get("vditc"):
            raise InputError(found=f"vditc {own}", wanted=str(data.get("vditc")), where="this worker", fix="install one version everywhere")
        return cls(**data)

    def load_target(self) -> Target:
        """InputError where the name stands for something else here."""
        target = Target.load(self.target)
        target = target.computing(self.compute) if self.compute not in (None, target.compute) else target
        target = target.attending(self.attention) if self.attention != target.compute else target
        if target_digest(target) != self.target_digest:
            raise InputError(
                found="another target of this name",
                wanted="the one that was asked for",
                where=self.target,
                fix="copy its file here as well",
            )
        return target


def target_digest(target: Target) -> str:
    """Of all that a target says."""
    return data_digest(dataclasses.asdict(target))


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a folder that is not hidden."""
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    shown = [n for n in names if not any(part.startswith(".") for part in n.parts)]
    return {n.as_posix(): {"bytes": (folder / n).stat().st_size, "sha256": sha256(folder / n)} for n in shown}


def check_files(root: Path, files: Files, fix: str) -> None:
    """VditcError unless every file is there, as long and with the sha256 that is said."""
    for name, about in files.items():
        path = root / name
        size = path.stat().st_size if path.is_file() else None
        if size != about["bytes"] or (digest := sha256(path)) != about["sha256"]:
            found = "no such file" if size is None else f"{size} bytes" if size != about["bytes"] else f"sha256 {digest[:16]}…"
            raise VditcError(found=found, wanted=f"{about['bytes']} bytes, sha256 {about['sha256'][:16]}…", where=str(path), fix=fix)


def build(request: EngineRequest) -> dict[str, Any]:
    """Build the engine; returns its facts, and the files that it consists of. VditcError as the backend, or for a changed input."""
    from vditc.memory import Memory
    from vditc.pipeline.build_engine import build_engine
    from vditc.profile import Profile
    from vditc.progress import SILENT
    from vditc.runtimes.trt_process import TIMING_CACHE

    root, target = Path(request.root), request.load_target()
    check_files(root, request.inputs, "copy the bundle again; a worker that does not see the bundle's folder is sent the files with --send")
    out = root / request.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    engine = root.joinpath("engines", *Path(request.out).parts[1:])  # its place in the bundle
    if (cache := engine / TIMING_CACHE).exists():
        shutil.copyfile(cache, out / TIMING_CACHE)  # what kernels took in an earlier build
    lowered = root / request.lowered
    facts = build_engine(
        root=root,
        folder=engine,
        lowered=lowered,
        target=target,
        profile=Profile.from_json(request.profile),
        work=out.with_name(f"{out.name}.work"),
        progress=SILENT,
        library=None if request.library is None else root / request.library,
        memory=None if request.memory is None else Memory.from_json(request.memory),
        options=BuildOptions.parse(request.options),
        out=out,
    )
    for graph in sorted(lowered.parent.glob(f"{lowered.stem}.segment_*.onnx")):  # that a device builds
        (out / GRAPHS).mkdir(exist_ok=True)
        graph.replace(out / GRAPHS / graph.name)
    return {"facts": facts.to_json(), "files": listed(out)}


def start(request: EngineRequest, work: Path) -> subprocess.Popen[bytes]:
    """Build in a process group of its own; `finished` has the result."""
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / "request.json", json.dumps(request.to_json(), indent=1))
    (work / "result.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "vditc.pipeline.engine_task", str(work / "request.json"), str(work / "result.json")]
    with (work / "task.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)


def finished(child: subprocess.Popen[bytes], work: Path) -> dict[str, Any]:
    """The result of a process that has ended: `build`'s, or {"error": in words}, with {"layers": layer -> why} that did not land."""
    if (path := work / "result.json").is_file():
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    last = (work / "task.log").read_text(errors="replace").strip().splitlines()[-1:]
    code = child.returncode
    how = f"died of {signal.Signals(-code).name}, as processes do that take too much memory" if code < 0 else f"exited with {code}"
    return {"error": f"{work}: found a builder that {how}{''.join(f' ({line})' for line in last)}; wanted an engine; read task.log there"}


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a build and its builder."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def attempt(request: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Whatever goes wrong with the input or the build is a result; `where`: what to name for a file that nobody names."""
    try:
        return build(EngineRequest.from_json(request))
    except PrecisionError as error:
        return {"error": str(error), "layers": dict(error.layers)}
    except VditcError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{error.filename or where}: found {error.strerror}; wanted a file that can be used; check the disk"}


def main(request: str, result: str) -> None:
    """A traceback is left to the log."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    found = attempt(json.loads(Path(request).read_text()), request)
    write_text(Path(result), json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
