"""Plain data that the manifest holds of what the stages found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.runtimes.graph_inputs import input_specs


def graph_inputs(model: Path) -> list[Mapping[str, Any]]:
    """Name, type, dims and fill of a graph's inputs: what a host without ONNX feeds it by."""
    return [{"name": i.name, "dtype": i.dtype, "dims": list(i.dims), "fill": i.fill} for i in input_specs(model)]


def input_range(statistics: Mapping[str, Any], layer: str) -> dict[str, float] | None:
    """Greatest input of a layer over the calibration's steps, and how far its channels are apart; None if it was not observed."""
    seen = statistics.get("layers", {}).get(layer)
    return None if seen is None else {"absmax": max(seen["absmax_per_step"]), "channel_spread": seen["channel_spread"]}


def timeless(facts: Any) -> Any:
    """Facts without what differs from run to run: that goes to report/run.json."""
    if isinstance(facts, dict):
        return {k: timeless(v) for k, v in facts.items() if k not in ("seconds", "peak_rss_bytes")}
    return [timeless(v) for v in facts] if isinstance(facts, list) else facts
