"""Bundles with engines of the stand-in (runtimes/cpp/tests/stand_in), and what they compute.

`python tests/cpp_engines.py runtimes/cpp/tests/data` writes what the programs of ctest read.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cpp_bundle
import ml_dtypes
import numpy as np
import numpy.typing as npt
from cpp_build import built
from cpp_bundle import SPECS, listed, save_bundle

from vditc.adapter import InputSpec
from vditc.bundle import Bundle, list_files, write_manifest
from vditc.part_graph import PartGraph, axis_size, unscaled
from vditc.sampling import Feeds

Array = npt.NDArray[Any]
TYPES: Mapping[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i64": np.int64, "i32": np.int32}
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32"}
STEP = InputSpec("step", "int64", (1,))
TARGET = "hopper"


class Device:
    """The stand-in of a GPU: what it counts, and how it is disturbed. What a test sets is put back by `reset`."""

    def __init__(self) -> None:
        folder = built() / "tests"
        os.environ["VDITC_CUDA_DRIVER"] = str(folder / "libvditc_stand_in_driver.so")
        os.environ["VDITC_TENSORRT_LIBRARY"] = str(folder / "libvditc_stand_in_tensorrt.so")
        self.driver = ctypes.CDLL(os.environ["VDITC_CUDA_DRIVER"])
        self.driver.stand_in_get.restype = ctypes.c_int64
        self.before: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return int(self.driver.stand_in_get(name.encode()))

    def __setitem__(self, name: str, value: int) -> None:
        self.before.setdefault(name, self[name])
        self.driver.stand_in_set(name.encode(), ctypes.c_int64(value))

    def reset(self) -> None:
        """As it was."""
        for name, value in self.before.items():
            self.driver.stand_in_set(name.encode(), ctypes.c_int64(value))
        self.before.clear()


def plan(
    inputs: Sequence[InputSpec], outputs: Sequence[str] = ("velocity f32",), *more: str, version: str = "10.3.0", arch: str = "sm_90"
) -> str:
    """Text of an engine; `outputs`: name, type, axes (see tensorrt.cpp)."""
    lines = [f"input {spec.name} {SHORT[spec.dtype]} {8 if spec.name == 'step' else 2}" for spec in inputs]
    return "\n".join([f"stand-in {version} {arch}", *lines, *(f"output {said}" for said in outputs), *more, ""])


def save_engine(
    root: Path, plans: Mapping[str, str], inputs: Sequence[InputSpec] = SPECS, files: Mapping[str, Any] | None = None, **about: Any
) -> Path:
    """Put a target "hopper" with these plans into a bundle; `files`: others beside them, objects as JSON. `about` changes the target."""
    manifest, folder = Bundle.open(root, hashes=False).manifest, root / "engines" / TARGET
    folder.mkdir(parents=True, exist_ok=True)
    built_with = {"module": "tensorrt", "version": "10.3.0", "arch": ["sm_90"], "options": {}}
    for name, said in {"engine.json": built_with, **plans, **(files or {})}.items():
        if said is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(said if isinstance(said, str) else json.dumps(said))
    engine = {"status": "built", "backend": "tensorrt", "version": "10.3.0", "plan_bytes": 1}
    target = {
        "backend": "tensorrt",
        "arch": ["sm_90"],
        "plugins": {"reason": "none"},
        "inputs": listed(tuple(inputs)),
        "engine": engine,
        **about,
    }
    write_manifest(root, dataclasses.replace(manifest, targets={**manifest.targets, TARGET: target}, files=list_files(root)))
    return root


def engine_bundle(root: Path, inputs: Sequence[InputSpec] = SPECS, outputs: Iterable[str] = ("velocity f32",), **more: Any) -> Path:
    """A bundle with one engine that takes `inputs`."""
    return save_engine(save_bundle(root), {"model.plan": plan(inputs, tuple(outputs))}, inputs, **more)


CHAIN = {
    "segment_00.plan": plan((SPECS[0], SPECS[2]), ("hidden f16", "kept f32"), "scratch 4096"),
    "segment_01.plan": plan((InputSpec("hidden", "float16", ()), SPECS[1]), ("hidden_2 bf16",), "scratch 64"),
    "segment_02.plan": plan((InputSpec("hidden_2", "bfloat16", ()), InputSpec("kept", "float32", ()), SPECS[3]), ("velocity f32",)),
}
SEGMENTS = {"schema": 1, "outputs": ["velocity"], "segments": [{"name": f"segment_{i:02}", "blocks": []} for i in range(3)]}


def chain_bundle(root: Path) -> Path:
    """A bundle with an engine in three segments."""
    return save_engine(save_bundle(root), CHAIN, files={"segments.json": SEGMENTS})


def save_part(root: Path, component: str, plans: Mapping[str, str], target: str = TARGET, status: str = "built") -> Path:
    """Put engines of a component's graphs (graph -> plan) into a bundle."""
    manifest = Bundle.open(root, hashes=False).manifest
    for graph, said in plans.items():
        folder = root / "components" / component / "engines" / target / graph
        folder.mkdir(parents=True)
        (folder / "model.plan").write_text(said)
    known = manifest.components.get(component, {})
    about = {"compute": "fp16", "graphs": {graph: {"engine": {"status": status, "backend": "tensorrt"}} for graph in plans}}
    components = {**manifest.components, component: {**known, "targets": {target: about}}}
    write_manifest(root, dataclasses.replace(manifest, components=components, files=list_files(root)))
    return root


def part_plan(graph: PartGraph, outputs: Sequence[str] | None = None, **about: Any) -> str:
    """Text of the engine of a decoder's graph."""
    axes = {"frames": 2, "height": 3, "width": 4}  # of the latents

    def words(dim: int | str) -> str:
        if isinstance(dim, int):
            return str(dim)
        axis, factor, less = unscaled(dim)
        return f"@{axes[axis]}x{factor}m{less}"

    made = [f"{name} f32 {' '.join(map(words, dims))}" for name, dims in graph.all_outputs.items()]
    return plan(graph.all_inputs, made if outputs is None else outputs, **about)


@dataclasses.dataclass
class PartStandIn:
    """What the engine of a decoder's graph computes; a `PartRunner`."""

    graph: PartGraph

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See the class."""
        arrays = [np.asarray(feeds[spec.name], np.float32) for spec in self.graph.all_inputs]
        sizes = dict(zip(("frames", "height", "width"), arrays[0].shape[2:], strict=True))
        seen, made = StandIn(()).run(arrays).ravel(), {}
        for name, dims in self.graph.all_outputs.items():
            shape = [axis_size(dim, sizes) for dim in dims]
            made[name] = np.resize(seen, shape)
        return made


@dataclasses.dataclass
class StandIn:
    """What an engine of these inputs computes; a `vditc.sampling.Denoiser`."""

    inputs: Sequence[InputSpec]
    dtype: Any = np.float32

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """See the class."""
        given = {**feeds, "step": np.array([step])}
        return np.asarray(self.run([np.asarray(given[spec.name]).astype(TYPES[SHORT[spec.dtype]]) for spec in self.inputs]), np.float32)

    def run(self, arrays: Sequence[Array]) -> Array:
        """Of arrays of the engine's types."""
        added = 0.0
        for k, array in enumerate(arrays[1:], start=1):
            numbers = np.asarray(array, np.float64).ravel()
            added += 2.0**-k * (float(np.add.accumulate(numbers)[-1]) / numbers.size)
        return (np.asarray(arrays[0], np.float64) / 2 + added).astype(self.dtype)


def save_data(folder: Path) -> None:
    """What programs of ctest read: `cpp_bundle.save_data`, and a bundle with engines that run."""
    cpp_bundle.save_data(folder)
    chain_bundle(folder / "engines")


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    save_data(Path(sys.argv[1]))
