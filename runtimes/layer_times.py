"""Where the time of a step goes: seconds of each module of the model, from a runtime's own profile of kernels or nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

OTHERS = "(no module)"  # what neither has a name nor comes from one node of the graph


def modules(kernels: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Module -> seconds, the longest first, of (name of a node or kernel, seconds).

    Nodes are named MODULE/OPERATOR; a kernel that holds several is named after all of them, and counts for the first.
    """
    found: dict[str, float] = {}
    for name, seconds in kernels:
        match = re.search(r"([\w.]+)/[A-Za-z]", name)
        module = match[1] if match else OTHERS
        found[module] = found.get(module, 0.0) + seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention", "Softmax", "QLinear", "QAttention")


def fused_modules(kernels: Iterable[tuple[tuple[str, ...], float]]) -> dict[str, float]:
    """Module -> seconds, the longest first, of (ONNX nodes of an engine's kernel, seconds).

    A kernel with products is theirs, in equal parts where it holds those of several layers (q, k and v as one); any other is its first
    node's. The engine fuses across modules: what a norm's kernel quantizes for the layer behind it counts for one of both.
    """
    found: dict[str, float] = {}
    for nodes, seconds in kernels:
        named = [
            (module, operator) for node in nodes if (module := _module(node)) for operator in [node.rpartition("/")[2].partition("_")[0]]
        ]
        owners = list(dict.fromkeys(module for module, operator in named if operator in _PRODUCTS)) or [m for m, _ in named[:1]] or [OTHERS]
        for module in owners:
            found[module] = found.get(module, 0.0) + seconds / len(owners)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _module(node: str) -> str:
    """ "blocks.0.ffn.net.2.weight/DequantizeLinear" -> "blocks.0.ffn.net.2"; "" for a node of no module."""
    match = re.match(r"([\w.]+)/[A-Za-z]", node)
    return match[1].removesuffix(".weight") if match else ""


def onnxruntime_nodes(profile: Path) -> list[tuple[str, float]]:
    """(node, seconds) of a profile that ONNX Runtime wrote (Chrome's trace format, microseconds)."""
    events = json.loads(profile.read_text())
    ends = "_kernel_time"
    return [(e["name"].removesuffix(ends), e["dur"] / 1e6) for e in events if e.get("cat") == "Node" and e["name"].endswith(ends)]
