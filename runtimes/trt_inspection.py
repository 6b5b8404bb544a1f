"""Reads the report of TensorRT's engine inspector: JSON at profiling verbosity DETAILED, with the ONNX nodes of each kernel.

The fields are those of published reports of TensorRT 10; the report does not list constants, so where a weight is converted is
not known from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.errors import VditcError
from vditc.runtimes.engine_program import EngineProgram, Gemm, Kernel

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRODUCT_TYPES = ("gemm", "fc", "matrixmultiply", "matrix_multiply", "fully_connected")
_PRODUCT_NAME = re.compile(r"__myl_\w*Fc")  # generated kernels are named after what they fuse
_TYPES = {  # words of "Format/Datatype" in old and new reports
    "int8": "int8",
    "int4": "int4",
    "fp8": "fp8_e4m3",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "half": "half",
    "fp16": "half",
    "float": "float",
    "fp32": "float",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
}


def inspected_program(report: Path) -> EngineProgram:
    """What the engine computes; VditcError if the report names no ONNX nodes."""
    layers = json.loads(report.read_text()).get("Layers", [])
    if not layers or not all(isinstance(layer, dict) and "Metadata" in layer for layer in layers):
        raise VditcError(
            found=f"{len(layers)} layers without metadata",
            wanted="a report of the engine inspector at profiling verbosity DETAILED",
            where=str(report),
            fix="use TensorRT 10.3 or newer",
        )
    gemms, attentions, plugins, kernels = [], [], [], []
    for layer in layers:
        name, kind = str(layer["Name"]), str(layer.get("LayerType", "")).lower()
        nodes = tuple(_NODE.findall(layer["Metadata"]))
        inputs, outputs = (tuple(_type(t, report) for t in layer.get(side, [])) for side in ("Inputs", "Outputs"))
        kernel = Kernel(name, nodes, tuple(f"{t}{o.get('Dimensions', '')}" for t, o in zip(outputs, layer.get("Outputs", []), strict=True)))
        if name.startswith("_gemm_mha"):
            attentions.append(kernel)
        elif "plugin" in kind:
            plugins.append(kernel)
        elif inputs and outputs and (kind in _PRODUCT_TYPES or _PRODUCT_NAME.match(name)):
            weight = inputs[1] if len(inputs) > 1 else inputs[0]
            gemms.append(Gemm(nodes, inputs[0], weight, outputs[0], stored=None, dequant_fused=True))
        else:
            kernels.append(kernel)
    return EngineProgram(str(report), tuple(gemms), tuple(attentions), tuple(plugins), tuple(kernels), {})


def kernel_nodes(report: str) -> dict[str, list[tuple[str, ...]]]:
    """Name of a kernel -> its ONNX nodes, once for each kernel of that name; {} for a report without them (no DETAILED verbosity)."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for layer in json.loads(report).get("Layers", []):
        if isinstance(layer, dict) and "Name" in layer:
            found.setdefault(str(layer["Name"]), []).append(tuple(_NODE.findall(layer.get("Metadata", ""))))
    return found


def _type(tensor: Mapping[str, Any], report: Path) -> str:
    said = str(tensor.get("Format/Datatype", ""))
    for word, kind in _TYPES.items():
        if word in said.lower():
            return kind
    raise VditcError(
        found=f"tensor {tensor.get('Name')} of type {said!r}",
        wanted=f"a type out of {', '.join(sorted(set(_TYPES.values())))}",
        where=str(report),
        fix="use TensorRT 10.3 to 11",
    )
