"""In how many kernels an engine makes the codes that its products read, from what was computed last before them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from vditc.runtimes.engine_program import EngineProgram, Kernel

_NAMED = ("Softmax", "LayerNormalization", "RMSNormalization", "ReduceMean", "Gelu", "Sigmoid", "Concat", "ReduceMax", "QuantizeLinear")


@dataclasses.dataclass(frozen=True)
class QuantizedInput:
    """A QuantizeLinear of a graph. `behind`: "norm", "gelu", "silu" or "rest", which is attention, a residual stream, a text.

    `nodes`: the names of all nodes from there to the codes; of a modulation those that touch the tokens.
    """

    node: str
    behind: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fusion:
    """`fused`: how many inputs are quantized by the kernel that computes what is before them; `cut`: QuantizeLinear -> several kernels."""

    fused: Mapping[str, int]
    cut: Mapping[str, int]


def fusion(inputs: Iterable[QuantizedInput], engine: EngineProgram) -> Fusion:
    """Where the engine quantizes `inputs`; an input that none of its kernels names counts as neither."""
    kernels = [set(kernel.nodes) for kernel in (*engine.kernels, *engine.attentions)]
    fused: Counter[str] = Counter()
    cut: dict[str, int] = {}
    for one in inputs:
        count = sum(not names.isdisjoint(one.nodes) for names in kernels)
        if count == 1:
            fused[one.behind] += 1
        elif count:
            cut[one.node] = count
    return Fusion(dict(sorted(fused.items())), dict(sorted(cut.items())))


def summary(engine: EngineProgram) -> dict[str, object]:
    """An engine in a few lines, from the engine alone: nodes have the name of their operator at the end."""
    return {
        "products": dict(sorted(Counter(str(g) for g in engine.gemms).items())),
        "attentions": len(engine.attentions),
        "plugins": dict(sorted(Counter(_operators_of(k) for k in engine.plugins).items())),
        "kernels": len(engine.kernels),
        "kernels_that_write_codes": dict(sorted(Counter(_operators(k) for k in (*engine.kernels, *engine.attentions) if k.codes).items())),
        "repeated_sizes": list(engine.repeated_sizes),
    }


def _operators_of(plugin: Kernel) -> str:
    """ "QLinear": what a node's name ends with."""
    return (plugin.nodes[0] if plugin.nodes else plugin.name).rpartition("/")[2]


def _operators(kernel: Kernel) -> str:
    """ "LayerNormalization + ReduceMax + QuantizeLinear" """
    there = {name.rpartition("/")[2].partition("_")[0] for name in kernel.nodes}
    return " + ".join(kind for kind in _NAMED if kind in there)
