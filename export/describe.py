"""Puts into a graph what sizes its dynamic axes may have, so that engines can be built without the model directory."""

from __future__ import annotations

import json

import onnx_ir as ir

from vditc.axis import Sizes


def describe_sizes(model: ir.Model, sizes: Sizes) -> None:
    """Add "axes" and "presets" to the metadata key `vditc`; `vditc.runtimes.graph_inputs.graph_sizes` reads them."""
    about = json.loads(model.metadata_props["vditc"])
    model.metadata_props["vditc"] = json.dumps({**about, **sizes.to_json()}, sort_keys=True, separators=(",", ":"))
