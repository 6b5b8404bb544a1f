"""What a worker of a cluster can build, as resources of Dask, and what it does when it is given an engine to build.

Importing this needs no Dask: `build_on_worker` is called where Dask is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vditc.build_memory import available_memory
from vditc.errors import VditcError
from vditc.pipeline.engine_task import EngineRequest, check_files, finished, start, stop
from vditc.runtimes.gpu import compute_capability
from vditc.target import Target, builtin_targets

MEMORY, GPU = "memory", "gpu"
ANY = 1e9  # of what a worker has without end
_POLL, _SENDING = 0.1, 600.0  # seconds; the second without a piece of a file, after which its sender is taken for dead
_PACKAGES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_cu13")}  # names under which versions are installed


def ability(target: Target) -> str:
    """The resource that a job for a target asks for: "tensorrt:sm_90:10.3-11". Targets of the same GPUs and runtime share it."""
    return f"{target.backend}:{'+'.join(target.arch) or 'cpu'}:{target.versions.least}-{target.versions.greatest or ''}"


def wanted_resources(target: Target, memory: int) -> dict[str, float]:
    """Of a job. TensorRT times its kernels on the GPU, so it has that alone."""
    if target.backend == "onnxruntime":
        return {}  # nothing is built
    return {ability(target): 1, MEMORY: memory, **({GPU: 1} if target.backend == "tensorrt" else {})}


def own_resources(targets: Sequence[Target] = (), memory: int | None = None) -> dict[str, float]:
    """What this machine has: an ability for every built-in target, and of `targets`, that it can build; memory in bytes; one GPU."""
    arch = compute_capability()
    known = [*(Target.load(name) for name in builtin_targets()), *targets]
    found = {ability(target): ANY for target in known if _builds(target, arch)}
    return {**found, MEMORY: float(available_memory() if memory is None else memory), **({} if arch is None else {GPU: 1})}


def _builds(target: Target, arch: str | None) -> bool:
    if target.backend not in _PACKAGES or (target.backend == "tensorrt" and arch not in target.arch):
        return False
    if importlib.util.find_spec(target.backend) is None:
        return False
    for package in _PACKAGES[target.backend]:
        try:
            return target.versions.holds(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            continue
    return True  # installed without metadata; the builder looks again


def topic(key: str) -> str:
    """Of the events by which workers say that they have begun the jobs of one command; `key`: of one of its jobs."""
    return key.rpartition("-")[0]


def build_on_worker(data: Mapping[str, Any], key: str, send: bool) -> dict[str, Any]:
    """Runs as a task of Dask: `vditc.pipeline.engine_task.finished`, its files left where they were built.

    With `send` the files that the request names are awaited in a folder of this worker, and that folder is named in the result.
    What fails by an error is a result too: only a worker that is lost makes Dask build anew.
    """
    from distributed import get_worker

    worker = get_worker()
    folder = Path(tempfile.mkdtemp(prefix="vditc-", dir=worker.local_directory)) if send else None
    worker.log_event(topic(key), {"key": key, "worker": worker.address, "where": _where(worker.name), "folder": str(folder)})
    try:
        request = EngineRequest.from_json({**data, "root": str(folder)} if folder else data)
        if folder:
            _await(folder, request, lambda: _given_up(worker, key))
        work = Path(request.root) / f"{request.out}.work"
        child = start(request, work)
        try:
            while child.poll() is None:
                if _given_up(worker, key):
                    break
                time.sleep(_POLL)
        finally:
            stop(child)
        result = finished(child, work)
    except (VditcError, OSError) as error:
        result = {"error": f"on worker {_where(worker.name)}: {error}"}
    if folder and "error" in result:
        shutil.rmtree(folder, ignore_errors=True)
    return {**result, "worker": worker.address, "where": _where(worker.name), "folder": str(folder)}


def put_piece(folder: str, name: str, offset: int, data: bytes) -> None:
    """Runs on a worker: a piece of a file that is sent to it."""
    path = _inside(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(data)
    Path(folder).touch()


def get_piece(folder: str, name: str, offset: int, count: int) -> bytes:
    """Runs on a worker: a piece of a file that it has built."""
    with _inside(folder, name).open("rb") as file:
        file.seek(offset)
        return file.read(count)


def drop_folder(folder: str) -> None:
    """Runs on a worker: the files that were sent and built are not needed any more."""
    _inside(folder, ".")
    shutil.rmtree(folder, ignore_errors=True)


def all_sent(folder: str) -> None:
    """Runs on a worker: there are no more files to wait for."""
    (_inside(folder, ".sent")).touch()


def _inside(folder: str, name: str) -> Path:
    """ValueError for what is not in a folder of `build_on_worker`."""
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not root.name.startswith("vditc-") or not path.is_relative_to(root):
        raise ValueError(f"{name} of {folder}")
    return path


def _await(folder: Path, request: EngineRequest, given_up: Callable[[], bool]) -> None:
    """Until every file is there; VditcError where none comes for long, or one is not as it was said."""
    while not (folder / ".sent").exists():
        if given_up() or time.time() - folder.stat().st_mtime > _SENDING:
            raise VditcError(
                found=f"no piece of a file for {_SENDING:g} s, or nobody who waits for the engine",
                wanted="the files to build from",
                where=str(folder),
                fix="see whether `vditc build` still runs",
            )
        time.sleep(_POLL)
    check_files(folder, request.inputs, "repeat the command with --retry-failed")


def _given_up(worker: Any, key: str) -> bool:
    """Whether nobody waits for the result any more: the command has ended, and the scheduler has told the worker."""
    task = worker.state.tasks.get(key)
    return task is None or task.state in ("cancelled", "released", "forgotten")


def _where(name: object) -> str:
    return f"{socket.gethostname()} ({name}, process {os.getpid()})"
