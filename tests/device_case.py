"""A small bundle with a target that a device builds, and a stand-in for the device.

That is a driver that says its GPU, and a TensorRT that only says what it was asked.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from lowered_graphs import save_blocks
from onnx import numpy_helper

from vditc.build_options import BuildOptions
from vditc.bundle import Bundle, Manifest, list_files, write_manifest
from vditc.device.package import DevicePackage
from vditc.memory import Memory
from vditc.pipeline.device_files import Part, write_device_files
from vditc.profile import Profile, Range
from vditc.runtimes.graph_inputs import input_specs
from vditc.target import Target
from vditc.version_range import VersionRange

TESTS = Path(__file__).parent
SHARED = "model.onnx.data"
UNREAD = 10_000  # bytes in front of the weights that no graph reads
PROFILE = Profile({"batch": Range(1, 2, 2), "tokens": Range(4, 8, 8), "text_tokens": Range(3, 3, 3)})
MEMORY = Memory(tokens=8, weights=1_000_000, activations=50_000_000, scores=0, builder=400_000_000)
_DRIVER = """
static int major = MAJOR, minor = MINOR;
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? major : minor; return 0; }
int cuDriverGetVersion(int* v) { *v = 12060; return 0; }
"""


def target(name: str = "jetson-orin-jp6", machine: str = "") -> Target:
    """The target, for this machine's processor unless told."""
    here = {"x86_64": "x86_64-cuda12", "aarch64": "aarch64-cuda12"}[machine or platform.machine()]
    return dataclasses.replace(Target.load(name), platform=here)


def save_lowered(root: Path, name: str, scheme: str = "w8a8", blocks: int = 1) -> Path:
    """A lowered graph whose weights lie in a file that other graphs share, behind what this one does not read."""
    (root / "lowered").mkdir(parents=True, exist_ok=True)
    path = save_blocks(root / "lowered" / name, scheme, blocks)
    model = onnx.load(path)
    with (path.parent / SHARED).open("wb") as data:
        data.write(bytes(range(250)) * (UNREAD // 250))
        for tensor in model.graph.initializer:
            if len(raw := numpy_helper.to_array(tensor).tobytes()) <= 256 or tensor.data_type == onnx.TensorProto.INT4:
                continue
            places = {"location": SHARED, "offset": data.tell(), "length": len(raw)}
            data.write(raw)
            tensor.ClearField("int32_data")
            tensor.ClearField("float_data")
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def make_bundle(root: Path, device: Target | None = None, *, parts: int = 1, library: Path | None = None, options: str = "") -> Bundle:
    """A bundle that has what `vditc compile` leaves of one target that a device builds, in one or several segments."""
    device = device or target()
    names = [device.name] if parts == 1 else [f"{device.name}_{i}" for i in range(parts)]
    graphs = [save_lowered(root, f"{name}.onnx") for name in names]
    kept = None
    if library is not None:
        kept = root / "plugins" / device.platform / library.name
        kept.parent.mkdir(parents=True)
        kept.write_bytes(library.read_bytes())
    segments = [
        Part("model" if parts == 1 else f"segment_{i:02}", graph, input_specs(graph), () if parts == 1 else (f"blocks.{i}",))
        for i, graph in enumerate(graphs)
    ]
    folder = root / "engines" / device.name
    write_device_files(
        root=root,
        folder=folder,
        parts=segments,
        target=device,
        profile=PROFILE,
        library=kept,
        memory=MEMORY,
        options=BuildOptions.parse(options),
    )
    engine: dict[str, Any] = {"status": "to build on the device", "backend": "tensorrt"}
    manifest = Manifest(
        vditc="0",
        model={"class": "C", "part": "transformer", "weights": 1, "digest": "0" * 64},
        recipe={"name": "w8a8", "method": "rtn", "description": "d"},
        layers={},
        kept={},
        mean_bits=8.0,
        sampling={"steps": 1, "guidance_scale": 1.0, "latent_shape": [1], "schedule": {}},
        inputs=[],
        profile=PROFILE.to_json(),
        graph={},
        targets={device.name: {"backend": "tensorrt", "engine": engine}},
        quality=None,
        gate={},
        tools={},
        files=list_files(root),
    )
    write_manifest(root, manifest)
    return Bundle.open(root)


def with_versions(device: Target, least: str, greatest: str | None) -> Target:
    """The target for other releases of TensorRT."""
    return dataclasses.replace(device, versions=VersionRange(least, greatest))


def fake_driver(folder: Path, arch: str = "sm_87", compiler: str = "gcc") -> Path:
    """A folder with a libcuda.so.1 that says so."""
    folder.mkdir(exist_ok=True)
    number = arch.removeprefix("sm_")
    (folder / "driver.c").write_text(_DRIVER.replace("MAJOR", number[:-1]).replace("MINOR", number[-1]))
    subprocess.run([compiler, "-shared", "-fPIC", str(folder / "driver.c"), "-o", str(folder / "libcuda.so.1")], check=True)
    return folder


def environment(driver: Path | None, **more: str) -> dict[str, str]:
    """For a build: nothing of vditc but what the package holds."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    return {
        **kept,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(TESTS / "stub_tensorrt"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **({"LD_LIBRARY_PATH": str(driver)} if driver else {}),
        **more,
    }


def build(root: Path, driver: Path | None, *arguments: str, name: str = "jetson-orin-jp6", **more: str) -> subprocess.CompletedProcess[str]:
    """`sh build.sh` of the target in `root`."""
    folder = root / "engines" / name
    command = ["sh", str(folder / "build.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(driver, **more), cwd="/")


def read(root: Path, name: str = "jetson-orin-jp6") -> DevicePackage:
    """The package of a target."""
    return DevicePackage.read(root / "engines" / name)
