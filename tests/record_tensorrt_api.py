"""Records the Python API of released TensorRT bindings in tests/runtimes/data/tensorrt_api.json, without a GPU and without TensorRT.

    pip download --no-deps -d wheels 'tensorrt_cu12_bindings==10.3.*'       # likewise 10.16, tensorrt_cu13_bindings 11.4,
    python tests/record_tensorrt_api.py wheels/*.whl                        # tensorrt_rtx_cu13_bindings 1.7

A wheel's extension module is imported over libraries that hold nothing but the functions that it wants. What pybind11 says of each method
in its docstring, names and types of arguments, is what is recorded; calling one of them would crash.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "runtimes" / "data" / "tensorrt_api.json"
RECORDED = (  # what the builder, the loader, the runner and the inspector may use
    *("Builder", "BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType", "EngineInspector", "EngineValidity"),
    *("ExecutionContextAllocationStrategy", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine", "IExecutionContext"),
    *("IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile", "IPluginCreatorV3One", "IPluginRegistry"),
    *("IPluginV3", "IPluginV3Layer", "IPluginV3OneCore", "PluginCapabilityType"),
    *("IProfiler", "IRuntimeCache", "IRuntimeConfig", "IStreamReader", "IStreamReaderV2", "IStreamWriter", "ITensor", "ITimingCache"),
    *("LayerInformationFormat", "LayerType", "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser"),
    *("OnnxParserRefitter", "ParserError", "ProfilingVerbosity", "Refitter", "Runtime", "TempfileControlFlag", "TensorIOMode"),
    *("TensorLocation", "TilingOptimizationLevel", "get_plugin_registry"),
)
_BOUNDARY = re.compile(r"(create|get|init)\w*(INTERNAL|Registry|Version|Plugins)")  # what bindings call of the libraries


def record(module: Any) -> dict[str, Any]:
    """Name -> {"members": [...]} of an enumeration, {"call": [...]} of a function, or a class's "call", "methods" and "properties"."""
    found: dict[str, Any] = {}
    for name in RECORDED:
        thing: Any = getattr(module, name, None)
        if hasattr(thing, "__members__"):
            found[name] = {"members": list(thing.__members__)}
        elif isinstance(thing, type):
            found[name] = _class(thing)
        elif thing is not None:
            found[name] = {"call": signatures(thing.__doc__)}
    return found


def _class(kind: type) -> dict[str, Any]:
    methods, properties, constants = {}, {}, []
    for name in dir(kind):
        thing = getattr(kind, name)
        if name.startswith("_") or (kind.__name__ == "INetworkDefinition" and name.startswith("add_")):
            continue
        if isinstance(thing, property):
            told = re.search(r"-> (.*)", (thing.fget.__doc__ or "") if thing.fget else "")
            properties[name] = f"{'r' if thing.fset is None else 'rw'} {_short(told[1]) if told else 'object'}"
        elif callable(thing) and not isinstance(thing, type):
            methods[name] = signatures(thing.__doc__)
        else:
            constants.append(name)
    return {
        "call": signatures(vars(kind)["__init__"].__doc__ if "__init__" in vars(kind) else None),
        "methods": methods,
        "properties": properties,
        "constants": constants,
    }


def signatures(doc: str | None) -> list[str]:
    """Of every overload, without `self`: "flag: BuilderFlag, on: bool = True -> None"."""
    found = []
    for line in (doc or "").splitlines():
        match = re.fullmatch(r"(?:\d+\. )?\w+\((.*)\)(?: -> (.*))?", line.strip())
        if match is not None and "*args" not in match[1]:
            parts = [p for p in _split(match[1]) if not p.startswith("self:")]
            found.append(f"{', '.join(_parameter(p) for p in parts)} -> {_short(match[2] or 'object')}".strip())
    return list(dict.fromkeys(found))


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _parameter(text: str) -> str:
    head, equals, _ = text.partition(" = ")
    name, _, kind = head.partition(":")
    return f"{name.strip()}: {_short(kind)}{' = ...' if equals else ''}"


def _short(kind: str) -> str:
    """ "tensorrt.tensorrt.BuilderFlag" -> "BuilderFlag", what pybind11 calls a number or a buffer in its versions -> one word."""
    short = re.sub(r"\b(?:\w+(?:\.|::))+(?=\w)", "", kind.strip())
    return {"SupportsInt": "int", "SupportsFloat": "float", "Buffer": "buffer", "CapsuleType": "capsule", "str_attr>": "object"}.get(
        short, short
    )


def import_over_stubs(wheel: Path, folder: Path) -> tuple[str, Any]:
    """Release ("10.3", "rtx-1.7") and module of a wheel, unpacked in `folder`."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    library = next(p for p in folder.rglob("tensorrt*.so"))
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    wanted = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout.split()
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted if _BOUNDARY.fullmatch(name)))

    import ctypes
    import importlib.util

    for name in re.findall(r"\[(libnv\S+|libtensorrt\S+)\]", dynamic):
        command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(folder / name), str(source), f"-Wl,-soname,{name}"]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location(library.name.partition(".")[0], library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    version = wheel.name.split("-")[1].split(".")
    return f"{'rtx-' if 'rtx' in wheel.name else ''}{version[0]}.{version[1]}", module


def main(wheels: list[str]) -> None:
    """One wheel a process: two of them define the same types."""
    if len(wheels) == 1 and wheels[0].startswith("one:"):
        with tempfile.TemporaryDirectory() as folder:
            release, module = import_over_stubs(Path(wheels[0].removeprefix("one:")), Path(folder))
            print(json.dumps({release: record(module)}))
        return
    found: dict[str, Any] = {}
    for wheel in wheels:
        done = subprocess.run([sys.executable, __file__, f"one:{wheel}"], stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    rows = [
        f' "{release}": {{\n' + ",\n".join(f'  "{n}": {json.dumps(a)}' for n, a in api.items()) + "\n }" for release, api in found.items()
    ]
    DATA.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
