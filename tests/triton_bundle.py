"""The tiny pipeline as TensorRT would have built it; the "plans" are its graphs, which a stand-in for Triton runs in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from tiny_bundle import SECOND, save_tiny_bundle

from vditc.build_options import BuildOptions
from vditc.bundle import Bundle, Manifest, list_files, read_manifest, write_manifest
from vditc.graph_passes.cut_segments import cut_again
from vditc.profile import Profile
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.graph_inputs import input_specs
from vditc.segments import Segments

TARGET, VERSION = "h100", "10.16.1.11"
BLOCKS = {"mixed": 0, "told": 0, "both": 1, "sum": 1, "velocity": 2}  # output of a node -> its block


def save_built(folder: Path, *, experts: bool = False, segments: bool = False, options: str = "", **sampling: Any) -> Bundle:
    """Of the tiny pipeline; `segments`: three, of a block each."""
    root = save_tiny_bundle(folder, experts=experts, **sampling).path
    inner = {}
    if experts:
        inner[SECOND] = _built(root / SECOND, segments, options)
        write_manifest(root / SECOND, inner[SECOND])
    manifest = _built(root, segments, options)
    for name, graphs in {"text_encoder": ["model"], "vae": ["first1", "next"]}.items():
        about = {graph: _part(root / "components" / name, graph, options) for graph in graphs}
        known = {"class": name, "tiled": False, "targets": {TARGET: {"compute": "fp32", "graphs": about}}}
        manifest = dataclasses.replace(manifest, components={**manifest.components, name: known})
    write_manifest(root, dataclasses.replace(manifest, files=list_files(root)))
    return Bundle.open(root)


def changed(bundle: Bundle, **what: Any) -> Bundle:
    """The same with another manifest; files are listed anew."""
    write_manifest(bundle.path, dataclasses.replace(read_manifest(bundle.path), **what, files=list_files(bundle.path)))
    return Bundle.open(bundle.path)


def retargeted(bundle: Bundle, **what: Any) -> Bundle:
    """With other facts of the target."""
    about = bundle.manifest.targets
    return changed(bundle, targets={**about, TARGET: {**about[TARGET], **what}})


def without(bundle: Bundle, *folders: str) -> Bundle:
    """Less of these parts."""
    for name in folders:
        shutil.rmtree(bundle.path / "components" / name)
    if "text_encoder" in folders:
        (bundle.path / "components" / "conditioner.json").unlink()
    return changed(bundle, components={n: c for n, c in bundle.manifest.components.items() if n not in folders})


def _built(root: Path, segments: bool, options: str) -> Manifest:
    manifest = read_manifest(root)
    if segments:
        _name_blocks(root / "model.onnx")
    lowered, folder = root / "lowered" / f"{TARGET}.onnx", root / "engines" / TARGET
    lowered.parent.mkdir()
    shutil.copyfile(root / "model.onnx", lowered)
    if segments:
        _save_segments(lowered, folder, Profile.from_json(manifest.profile))
    else:
        _plan(lowered, folder)
    _engine_json(folder, options)
    about = {
        "backend": "tensorrt",
        "arch": ["sm_90"],
        "compute": "fp32",
        "lowered": f"lowered/{TARGET}.onnx",
        "inputs": manifest.inputs,
        "plugins": {"reason": "none"},
        "engine": {"status": "built", "backend": "tensorrt", "version": VERSION},
    }
    return dataclasses.replace(manifest, targets={**manifest.targets, TARGET: about}, files=list_files(root))


def _part(folder: Path, graph: str, options: str) -> dict[str, Any]:
    place, lowered = folder / "engines" / TARGET / graph, folder / f"{graph}.{TARGET}.onnx"
    shutil.copyfile(folder / f"{graph}.onnx", lowered)
    _plan(lowered, place)
    _engine_json(place, options)
    return {"nodes": 1, "error": 0.0, "lowered": lowered.name, "engine": {"status": "built", "backend": "tensorrt", "version": VERSION}}


def _plan(graph: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(graph, folder / "model.plan")


def _engine_json(folder: Path, options: str) -> None:
    BuiltWith(module="tensorrt", version=VERSION, arch=("sm_90",), options=BuildOptions.parse(options)).write(folder)


def _name_blocks(path: Path) -> None:
    model = onnx.load(path)
    for node in model.graph.node:
        if (block := BLOCKS.get(node.output[0])) is not None:
            node.name = f"blocks.{block}/{node.output[0]}"
    onnx.save(model, path)


def _save_segments(lowered: Path, folder: Path, profile: Profile) -> None:
    blocks = {f"segment_{i:02}": (f"blocks.{i}",) for i in sorted(set(BLOCKS.values()))}
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        for segment in cut_again(lowered, input_specs(lowered), profile, blocks.values(), Path(work)):
            shutil.copyfile(segment.graph, folder / f"{segment.name}.plan")
    (folder / "segments.json").write_text(Segments(blocks, ("velocity",)).to_text())


def io_of(plan: Path) -> tuple[dict[str, tuple[int, list[Any]]], dict[str, tuple[int, list[Any]]]]:
    """Inputs and outputs of a "plan": element type and axes, None for a named one."""
    graph = onnx.load(plan).graph

    def of(values: Sequence[Any]) -> dict[str, tuple[int, list[Any]]]:
        shapes = {v.name: v.type.tensor_type for v in values}
        return {n: (t.elem_type, [d.dim_value or None for d in t.shape.dim]) for n, t in shapes.items()}

    return of(graph.input), of(graph.output)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
