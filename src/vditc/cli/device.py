"""`vditc package | collect`: what a device builds its engines from, and its engines back in the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vditc.bundle import Bundle
from vditc.cli.app import app, console
from vditc.cli.options import ForceOption, JsonOption, fresh
from vditc.device.__main__ import boards
from vditc.device.build import read_engine
from vditc.device.package import BUILT, DEVICE, DevicePackage
from vditc.engine_facts import device_words
from vditc.errors import InputError

BundleArg = Annotated[Path, typer.Argument(metavar="BUNDLE", help="what `vditc compile` wrote")]


@app.command("package")
def package_command(
    bundle: BundleArg,
    target: Annotated[
        str | None, typer.Option("--target", help="a target of the bundle [default with --triton: the only one with engines of TensorRT]")
    ] = None,
    triton: Annotated[bool, typer.Option("--triton", help="a model repository for Triton, from engines that are built")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder, or file.tar [default: only say the sizes]")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a device needs to build one target's engines, and nothing else: sh build.sh there needs Python and TensorRT alone.

    With --triton: a model repository that Triton Inference Server runs, prompts in and frames out (docs/triton.md).
    Every file is checked against the bundle's manifest.
    """
    if target is None and not triton:
        raise InputError(
            found="no target", wanted="--target, whose engines a device builds, or --triton", where="vditc package", fix="name one"
        )
    if out is not None:
        fresh(out, force, folder=out.suffix != ".tar")
    opened = Bundle.open(bundle, hashes=False)
    if triton or target is None:
        _triton(opened, target, out, force, as_json)
    else:
        _device(opened, target, out, force, as_json)


def _device(bundle: Bundle, target: str, out: Path | None, force: bool, as_json: bool) -> None:
    from vditc.pipeline.device_package import package, plan_package

    plan = plan_package(bundle, target)
    fits = {folder: boards(known) for folder, known in plan.packages.items()}
    if not as_json:
        _say_sizes(plan.sizes)
        for folder, lines in fits.items():
            _say("\n".join((f"memory to build and run {folder} (estimate):", *(f"  {line}" for line in lines))))
    sizes = plan.sizes if out is None else package(plan, out, force=force)
    _written(out, {"target": target, "files": sizes, "bytes": sum(sizes.values()), "memory": fits}, as_json)


def _triton(bundle: Bundle, target: str | None, out: Path | None, force: bool, as_json: bool) -> None:
    from vditc.pipeline.triton.repository import plan_repository, server_command, write_repository

    plan = plan_repository(bundle, target)
    sizes = plan.sizes
    if not as_json:
        # The driver's own modules are many, and small.
        heavy = {name: size for name, size in sizes.items() if "/1/python/" not in name}
        _say_sizes(heavy, len(sizes) - len(heavy), sum(sizes.values()) - sum(heavy.values()))
        _say(f"for TensorRT {plan.about['tensorrt']} on {', '.join(plan.about['gpus'])}")
    if out is not None:
        write_repository(plan, out, force=force)
    _written(out, {**plan.about, "files": sizes, "bytes": sum(sizes.values())}, as_json)
    if out is not None and out.is_dir() and not as_json:
        _say(f"sh {out}/run.sh, which is: {server_command(plan.about, str(out.absolute()))}")


def _say_sizes(sizes: Mapping[str, int], others: int = 0, others_bytes: int = 0) -> None:
    for name, size in sizes.items():
        _say(f"{size:>17,}  {name}")
    if others:
        _say(f"{others_bytes:>17,}  {others} modules of Python")
    _say(f"{sum(sizes.values()) + others_bytes:>17,}  bytes in {len(sizes) + others} files")


def _written(out: Path | None, about: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"out": str(out) if out else None, **about}))
    elif out is not None:
        written = out.stat().st_size if out.is_file() else sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        _say(f"wrote {out}: {written:,} bytes")


@app.command("collect")
def collect_command(
    built: Annotated[Path, typer.Argument(metavar="PACKAGE", help="the package as the device left it, or its engine folder")],
    bundle: BundleArg,
    as_json: JsonOption = False,
) -> None:
    """Take engines that a device built into the bundle, and record in the manifest what they are and how they were built."""
    from vditc.pipeline.collect import collect

    found = collect(built, bundle)
    if as_json:
        print(json.dumps(found))
        return
    for folder, said in found.items():
        plans = ", ".join(f"{name} {plan['bytes'] / 1e6:.2f} MB" for name, plan in said["plans"].items())
        _say(f"{bundle / folder}: {plans}; built on {device_words(said['device'])}")


def is_package(path: Path) -> bool:
    """Whether a folder is a device package, or an engine folder of one or of a bundle."""
    return (path / DEVICE).is_file() or (not (path / "manifest.json").exists() and any(path.glob(f"**/engines/**/{DEVICE}")))


def package_facts(path: Path) -> dict[str, Any]:
    """Folder of each engine -> what is to be built there, and what was."""
    folders = [path] if (path / DEVICE).is_file() else sorted(p.parent for p in path.glob(f"**/engines/**/{DEVICE}"))
    found = {}
    for folder in folders:
        known = DevicePackage.read(folder)
        found[folder.relative_to(path).as_posix()] = {
            "target": known.target,
            "runtime": known.runtime,
            "arch": list(known.arch),
            "profile": known.profile,
            "engines": [{"name": g.name, "weights": g.weights, "builder": g.builder, "blocks": list(g.blocks)} for g in known.graphs],
            "activations": known.activations,
            "library": known.library,
            "bytes": sum(e.bytes for e in known.files.values()),
            "memory": boards(known),
            "built": read_engine(folder) if (folder / BUILT).is_file() else None,
        }
    return found


def show_package(path: Path, facts: dict[str, Any]) -> None:
    """The same for people."""
    for folder, known in facts.items():
        what = f"{known['target']} ({', '.join(known['arch'])}, {known['runtime']})"
        _say(f"{path / folder}: for {what}, {known['bytes']:,} bytes to build from")
        _say("\n".join(f"  {line}" for line in known["memory"]))
        if (built := known["built"]) is None:
            _say("  not built: sh build.sh on the device")
            continue
        for name, plan in built["plans"].items():
            _say(f"  {name}: {plan['bytes'] / 1e6:.2f} MB, sha256 {plan['sha256'][:16]}")
        _say(f"  built by TensorRT {built['engine'].get('version')} on {device_words(built['device'])}")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
