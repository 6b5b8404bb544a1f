"""Puts into a graph what its inputs mean and what sizes they may have, so that nobody has to ask the model directory again."""

from __future__ import annotations

import json
from collections.abc import Iterable

import onnx_ir as ir

from vditc.adapter import InputSpec
from vditc.axis import Sizes


def describe_inputs(model: ir.Model, specs: Iterable[InputSpec], sizes: Sizes) -> None:
    """Add "axes", "presets" and "fills" (input -> `InputSpec.fill`) to the metadata key `vditc`.

    `vditc.runtimes.graph_inputs` reads them.
    """
    about = json.loads(model.metadata_props["vditc"]) | sizes.to_json() | {"fills": {spec.name: spec.fill for spec in specs}}
    model.metadata_props["vditc"] = json.dumps(about, sort_keys=True, separators=(",", ":"))
