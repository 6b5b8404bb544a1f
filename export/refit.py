"""Which tensors of the checkpoint each initialiser of a graph comes from, and how: `model.refit.json` beside `model.onnx`.

    {"schema": 1, "model_digest": ..., "recipe": ..., "recipe_digest": ..., "method": ..., "initialisers": {NAME: ENTRY, ...}}
    ENTRY: {"sources": [tensors of the checkpoint], "transform": ..., "lora": whether LoRAs were added first}

`W` is the checkpoint's tensor [N, K] with the LoRAs added, rounded to the checkpoint's type. Transforms:

    copy                        the bytes of W
    transpose                   W as [K, N]
    codes DTYPE [K,N] of W      integer codes, as the method of the calibration chose them with the layer's `spec`, of what is left of W
                                `after` the layer's transform (vditc.transform; its tensors are in the calibration file)
    scale DTYPE of W            their scales, [], [N] or [K/G, N]
    tensor_scale DTYPE of W     the scale of FP4's scales, []
    offset DTYPE of W           -scale * zero_point of asymmetric weights, [N]
    bias DTYPE of W             a bias, balanced and rotated as `after` says with the layer's output_balance (vditc.transform)
    of W, not linearly          from W by the method of the calibration: the factors of a low-rank branch, W times a shift
    learnt from W               by a training of the whole model: another W needs another training
    computed                    not from the checkpoint (`sources` is empty): shapes, tables of the adapter, ranges of activations
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vditc.calibration import Calibration
from vditc.correction import ALPHA, BETA, BIAS, FRAMES
from vditc.export.weights import TRANSFORMED_BIAS
from vditc.lora import FusedTensor
from vditc.model_dir import ModelDir
from vditc.transform import DOWN, UP

SCHEMA = 1
OF_WEIGHT = (BIAS, DOWN, UP, ALPHA, BETA, FRAMES)  # tensors of a layer that a method made of its weight


def refit_file(model: Path) -> Path:
    """Where the map of a graph is: model.onnx -> model.refit.json, model -> model.refit.json."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.refit.json")


def refit_map(graph: ir.Graph, source: ModelDir, calibration: Calibration, linears: Collection[str]) -> dict[str, Any]:
    """Plain data that says where every initialiser of a finished graph comes from.

    `linears`: layers whose weight is stored [K, N], the transpose of the checkpoint's.
    """
    entries: dict[str, dict[str, Any]] = {}
    learnt = "training" in calibration.statistics
    made = {f"{layer}.{part}": layer for layer in calibration.layers for part in OF_WEIGHT}
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        layer, dtype = name.rpartition(".")[0], value.const_value.dtype.numpy().name
        weight = f"{layer}.weight"
        quantized = calibration.layers.get(layer)
        if quantized is not None and name.removeprefix(weight) in ("", "_scale", "_offset", "_tensor_scale"):
            what = (
                "learnt from W"
                if learnt
                else f"codes {dtype} [K,N] of W"
                if name == weight
                else f"{name.removeprefix(f'{weight}_')} {dtype} of W"
            )
            after = "; ".join(str(t) for t in (quantized.output, quantized.transform) if t is not None)
            entries[name] = {**_entry(source, weight, what), "spec": str(quantized.scheme.weight), "after": after}
        elif name.endswith(TRANSFORMED_BIAS):
            own = name.removesuffix(TRANSFORMED_BIAS)
            entries[name] = {**_entry(source, f"{own}.bias", f"bias {dtype} of W"), "after": str(calibration.layers[own].output)}
        elif name in made:
            entries[name] = _entry(source, f"{made[name]}.weight", "learnt from W" if learnt else "of W, not linearly")
        elif name in source.weights:
            entries[name] = _entry(source, name, "transpose" if name == weight and layer in linears else "copy")
        else:
            entries[name] = {"sources": [], "transform": "computed", "lora": False}
    return {
        "schema": SCHEMA,
        "model_digest": calibration.model_digest,
        "recipe": calibration.recipe,
        "recipe_digest": calibration.recipe_digest,
        "method": calibration.method,
        "initialisers": entries,
    }


def to_text(refit: dict[str, Any]) -> str:
    """The map as JSON, one line for each initialiser."""
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(refit["initialisers"].items())]
    head = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in refit.items() if key != "initialisers"]
    return "\n".join(["{", *head, ' "initialisers": {', ",\n".join(lines), " }", "}", ""])


def _entry(source: ModelDir, tensor: str, transform: str) -> dict[str, Any]:
    return {"sources": [tensor], "transform": transform, "lora": isinstance(source.weights[tensor], FusedTensor)}
