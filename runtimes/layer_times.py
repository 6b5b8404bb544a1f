"""Where the time of a step goes: seconds of each module of the model, from a runtime's own profile of kernels or nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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


def kinds(times: Mapping[str, float]) -> dict[str, float]:
    """The same of modules that only differ in the number of their block: "blocks.*.attn1.to_q"."""
    found: dict[str, float] = {}
    for module, seconds in times.items():
        kind = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", module, count=1)
        found[kind] = found.get(kind, 0.0) + seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def onnxruntime_nodes(profile: Path) -> list[tuple[str, float]]:
    """(node, seconds) of a profile that ONNX Runtime wrote (Chrome's trace format, microseconds)."""
    events = json.loads(profile.read_text())
    ends = "_kernel_time"
    return [(e["name"].removesuffix(ends), e["dur"] / 1e6) for e in events if e.get("cat") == "Node" and e["name"].endswith(ends)]
