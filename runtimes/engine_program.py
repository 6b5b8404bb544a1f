"""What an engine computes, as far as its own description tells: products, fused attention, plugins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Gemm:
    """One matrix product. Types are the engine's own names: "int8", "half", "float", "int4".

    `nodes`: the ONNX nodes in it, several where products that read the same tensor were merged. `stored`: the type of the weight
    in the engine, None if it is not a constant or not known. `dequant_fused`: whether the weight is converted
    inside this product rather than by a kernel of its own that writes the whole converted weight on every run.
    """

    nodes: tuple[str, ...]
    activation: str
    weight: str
    output: str
    stored: str | None
    dequant_fused: bool

    def __str__(self) -> str:
        source = "" if self.stored in (None, self.weight) else f" from {self.stored}"
        apart = "" if self.dequant_fused or not source else " by a kernel of its own"
        return f"{self.activation} x {self.weight}{source}{apart} -> {self.output}"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Any other kernel: its name, the ONNX nodes in it and its outputs, written like "half[2 3 512 512]"."""

    name: str
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def codes(self) -> bool:
        """Whether it writes INT8 or FP8."""
        return any(output.startswith(("int8", "fp8")) for output in self.outputs)


@dataclasses.dataclass(frozen=True)
class EngineProgram:
    """All of an engine. `constant_bytes`: bytes of constants by type, empty if not known.

    `repeated_sizes`: tensors in which a size that is known at run time comes twice, as in scores of all tokens by all tokens.
    """

    source: str
    gemms: tuple[Gemm, ...]
    attentions: tuple[Kernel, ...]
    plugins: tuple[Kernel, ...]
    kernels: tuple[Kernel, ...]
    constant_bytes: Mapping[str, int]
    repeated_sizes: tuple[str, ...] = ()
