"""Builds the engines of a package on the device that they are for, one graph at a time, and says in built.json what came of it.

A finished graph is noted, so that a build that was killed goes on with the next one.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vditc.device.facts import device_facts
from vditc.device.memory import BoardMemory, Share, gib, share
from vditc.device.package import BUILT, SCHEMA, SCRIPT, DeviceGraph, DevicePackage
from vditc.errors import InputError
from vditc.files import data_digest, room_for, sha256, whole_file, write_text
from vditc.plugins.library import Library
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.precision import assert_landed
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_inspection import inspected_program
from vditc.runtimes.trt_process import TIMING_CACHE, built_facts, keep_timing_cache, run_build
from vditc.version_range import VersionRange

WORK = ".build"  # notes, the builder's logs
PLAN_SHARE = 1.1  # of the weights' bytes, that an engine may take on the disk
Say = Callable[[str], None]


def build_package(folder: Path, *, say: Say, library: Path | None = None, board: BoardMemory | None = None, force: bool = False) -> Path:
    """Build every engine of the package whose device.json is in `folder`; returns built.json there.

    `library` replaces the package's plugin library, `board` this machine's memory. Nothing is built again that is there, unless
    `force`. InputError for a package that is not whole, another GPU, another TensorRT or too little memory, before any work;
    VditcError for a build that fails, PrecisionError for an engine of another precision. No engine is left half written.
    """
    package = DevicePackage.read(folder)
    version = check_machine(package)
    board = board or BoardMemory.allowed(package.options) or BoardMemory.here()
    limits = {graph.name: share(package, graph, board) for graph in package.graphs}
    say(f"checking {len(package.files)} files, {gib(sum(e.bytes for e in package.files.values()))}")
    package.check_files(folder)
    plugins = _library(package, folder, library)
    digest = data_digest(
        {"package": package.identity, "version": version, "arch": package.arch, "plugins": sha256(plugins) if plugins else None}
    )
    built = {g.name: None if force else _noted(folder, g, digest) for g in package.graphs}
    room = sum(g.weights for g in package.graphs if built[g.name] is None and not package.options.strip_weights)
    with room_for(folder / BUILT, int(PLAN_SHARE * room)):
        for graph in package.graphs:
            note = built[graph.name]
            say(f"{graph.plan} is there" if note else f"building {graph.plan}, {gib(limits[graph.name].workspace)} of workspace")
            if note is None:
                if swapped := limits[graph.name].swapped:
                    say(f"{gib(swapped)} are expected in swap: this takes long")
                built[graph.name] = _build(package, folder, graph, plugins, limits[graph.name], digest, say)
    facts = {graph: EngineFacts.from_json(note["engine"]) for graph, note in built.items() if note is not None}
    said = {
        "schema": SCHEMA,
        "package": package.identity,
        "vditc": package.vditc,
        "target": package.target,
        "profile": package.profile,
        "engine": _together(package, facts).to_json(),
        "device": device_facts(),
        "memory": {graph: {"workspace": limit.workspace, "tactic_memory": limit.tactic_memory} for graph, limit in limits.items()},
        "plans": {g.plan: {"bytes": (folder / g.plan).stat().st_size, "sha256": sha256(folder / g.plan)} for g in package.graphs},
        "plugins": {"sha256": sha256(plugins)} if plugins else None,
    }
    BuiltWith(
        module=package.module,
        version=version,
        arch=package.arch,
        options=package.options,
        weights=f"{package.root}/{package.graphs[0].lowered}" if package.options.strip_weights else None,
    ).write(folder)
    write_text(folder / BUILT, json.dumps(said, indent=1, sort_keys=True) + "\n")
    return folder / BUILT


def check_machine(package: DevicePackage) -> str:
    """The version of this machine's TensorRT; InputError when machine, GPU or version are not those of the target."""
    where = f"this machine, for target {package.target}"
    if platform.machine() != package.machine:
        raise InputError(found=platform.machine(), wanted=package.machine, where=where, fix="build on the device")
    if (arch := compute_capability()) not in package.arch:
        found = "no NVIDIA GPU, or no driver" if arch is None else f"a GPU of {arch}"
        raise InputError(
            found=found, wanted=" or ".join(package.arch), where=where, fix="build on the device, or compile for the target of this GPU"
        )
    asked = subprocess.run(
        [sys.executable, "-c", f"import {package.module} as t; print(t.__version__)"], capture_output=True, text=True, check=False
    )
    version, known = asked.stdout.strip().rpartition("\n")[2], VersionRange(*package.versions)
    if asked.returncode or not version:
        said = (asked.stderr.strip().splitlines() or ["it says no version"])[-1]
        raise InputError(
            found=f"no usable {package.module} ({said})",
            wanted=f"{package.module} {known} for Python {platform.python_version()}",
            where=f"{where}, {sys.executable}",
            fix="install JetPack's python3-libnvinfer and use the system's python3 (PYTHON=/usr/bin/python3), or see requirements.txt",
        )
    if not known.holds(version):
        raise InputError(
            found=f"{package.module} {version}",
            wanted=f"{package.module} {known}",
            where=where,
            fix="compile for the target of this JetPack (vditc targets), or install the JetPack of this target",
        )
    return version


def _library(package: DevicePackage, folder: Path, said: Path | None) -> Path | None:
    """The plugin library where the graphs need one; InputError when it is missing or does not load here."""
    if package.library is None:
        return None
    path = said or folder / package.root / package.library
    if not path.is_file():
        raise InputError(
            found="no file",
            wanted="the plugin library",
            where=str(path),
            fix="name it: --plugins LIB; docs/edge.md tells how to build it",
        )
    Library(path)
    return path.resolve()


def _noted(folder: Path, graph: DeviceGraph, digest: str) -> dict[str, Any] | None:
    """What an earlier build of the very same graph left; None when it has to be built."""
    plan = folder / graph.plan
    try:
        note: dict[str, Any] = json.loads(_note(folder, graph).read_text())
        whole = note["digest"] == digest and plan.stat().st_size == note["bytes"] and sha256(plan) == note["sha256"]
        EngineFacts.from_json(note["engine"])
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
    return note if whole else None


def _note(folder: Path, graph: DeviceGraph) -> Path:
    return folder / WORK / f"{graph.name}.json"


def _build(
    package: DevicePackage, folder: Path, graph: DeviceGraph, plugins: Path | None, limit: Share, digest: str, say: Say
) -> dict[str, Any]:
    work = folder / WORK / graph.name
    _note(folder, graph).unlink(missing_ok=True)
    report, keeps = work / "inspection.json", package.options.timing_cache is not False
    with whole_file(folder / graph.plan) as plan:
        request = BuildRequest(
            module=package.module,
            lowered=str(folder / package.root / graph.lowered),
            plan=str(plan),
            shapes=graph.shapes,
            compute_capabilities=[],
            inspection=str(report),
            versions=package.versions,
            plugins=str(plugins) if plugins and graph.expectation.plugins else None,
            plugin_nodes=graph.expectation.plugin_names,
            options=dataclasses.replace(package.options, workspace=limit.workspace, tactic_memory=limit.tactic_memory),
            timing_cache=(str(folder / TIMING_CACHE), str(work / TIMING_CACHE)) if keeps else None,
        )
        result = run_build(request, work)
        if keeps:
            keep_timing_cache(work, folder)
        for note in result.notes:
            say(f"{graph.name}: {note}")
        landed = assert_landed(graph.expectation, inspected_program(report))
        facts = built_facts(package.module, package.arch, plan.stat().st_size, result, landed)
        done = {"digest": digest, "bytes": plan.stat().st_size, "sha256": sha256(plan), "engine": facts.to_json()}
    write_text(_note(folder, graph), json.dumps(done))
    return done


def _together(package: DevicePackage, facts: dict[str, EngineFacts]) -> EngineFacts:
    """The facts of the engine, of several segments those of all."""
    if len(facts) == 1:
        return next(iter(facts.values()))
    return EngineFacts.joined(facts, {graph.name: graph.blocks for graph in package.graphs})


def read_engine(folder: Path) -> dict[str, Any]:
    """What built.json of a folder says, every plan of it checked; InputError when there is none or a plan is not as it says."""
    path = folder / BUILT
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        plans = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in said["plans"].items()}
        EngineFacts.from_json(said["engine"])
        for key in ("package", "target", "device", "profile"):
            said[key]
    except OSError as error:
        raise InputError(
            found=f"no readable file ({error.strerror})", wanted="a built engine", where=str(path), fix=f"run {SCRIPT} on the device"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            found=f"wrong keys ({error!r})", wanted="what a device wrote", where=str(path), fix="build it again, with --force"
        ) from error
    for name, (size, digest) in plans.items():
        plan = folder / name
        if "/" in name or not plan.is_file() or plan.stat().st_size != size or sha256(plan) != digest:
            raise InputError(
                found=f"{name} that is not as {BUILT} says",
                wanted=f"{size:,} bytes with sha256 {digest[:16]}…",
                where=str(folder),
                fix="copy the folder from the device again, or build again there",
            )
    return said


def report(path: Path) -> str:
    """One line about what built.json says."""
    said = json.loads(path.read_text(encoding="utf-8"))
    total = sum(int(e["bytes"]) for e in said["plans"].values())
    return f"wrote {', '.join(said['plans'])}: {total / 1e6:.2f} MB for {said['target']}; facts in {path}"
