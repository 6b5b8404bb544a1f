"""Layers of `vditc.QLinear` with random tensors, computed by kernels and by the oracle."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.plugins.emulated import emulated_library
from vditc.plugins.library import Library
from vditc.plugins.packing import code_range, pack, pack_tokens
from vditc.plugins.qlinear import kernels, reference
from vditc.plugins.qlinear.kernels import Problem, Tactic, aligned
from vditc.plugins.qlinear.op import QLinear

Array = npt.NDArray[Any]
FLOATS = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
UNPACKED = (Tactic.UNPACK_128, Tactic.UNPACK_64)


@functools.cache
def library() -> Library:
    """The emulated library, which is the same for all tests."""
    return Library(emulated_library())


@dataclasses.dataclass
class Layer:
    """An operator, the kernels' problem and its tensors, which lie as the library wants them."""

    op: QLinear
    problem: Problem
    tensors: dict[str, Array]

    def inputs(self) -> list[Array]:
        """For the oracle: in the operator's order, broadcast tensors as large as y."""
        given = {**self.tensors, "b": self.tensors.get("bias")}
        rows = np.arange(self.problem.m)
        for name in ("gate", "residual"):
            if name in given:
                inner, count = getattr(self.problem, f"{name}_rows")
                given[name] = self.tensors[name][rows // inner % count]
        return [np.asarray(given[name]) for name in self.op.inputs]


def layer(op: QLinear, m: int, seed: int, **rows: Any) -> Layer:
    """`m` random rows through a random layer. `rows`: of `kernels.problem_of`."""
    rng = np.random.default_rng(seed)
    problem = kernels.problem_of(op, m, **rows)
    low, high = code_range(op.bits, unsigned=op.unsigned)
    x_low, x_high = code_range(op.activation_bits)
    codes = rng.integers(x_low, x_high + 1, (m, op.k), dtype=np.int8)
    out = FLOATS[op.output]
    branch = FLOATS["fp16" if op.output == "fp32" else op.output]
    made: dict[str, Array] = {
        "x": pack_tokens(codes) if op.packed else codes,
        "scale": rng.random((m, 1) if problem.scale_per_row else (1, 1)).astype(np.float32) * np.float32(0.05),
        "weight": pack(rng.integers(low, high + 1, (op.n, op.k), dtype=np.int8), op.bits, unsigned=op.unsigned),
        "weight_scale": (rng.random((op.k // op.group, op.n) if op.group else op.n) * 0.01).astype(np.float32),
        "left": rng.standard_normal((m, op.rank)).astype(np.float32),
        "right": rng.standard_normal((op.rank, op.n)).astype(np.float32),
        "down": rng.standard_normal((m, op.low_rank)).astype(branch),
        "up": rng.standard_normal((op.low_rank, op.n)).astype(branch),
        "b": rng.standard_normal(op.n).astype(np.float32),
        "gate": rng.standard_normal((problem.gate_rows[1], op.n)).astype(out),
        "residual": rng.standard_normal((problem.residual_rows[1], op.n)).astype(out),
    }
    tensors = {"bias" if name == "b" else name: placed(made[name]) for name in op.inputs}
    return Layer(op, problem, tensors)


def placed(array: Array) -> Array:
    """A copy at an address that the library takes."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def accumulated(made: Layer, tactic: Tactic, sm: int = 80) -> Array:
    """A kernel's accumulators int32 [m, n]."""
    out = aligned((made.problem.m, made.op.n), np.int32)
    out[...] = 0x5A5A5A5A
    kernels.accumulators(library(), made.problem, dict(made.tensors), out, tactic, workspace(made, tactic, sm))
    return out


def computed(made: Layer, tactic: Tactic, sm: int = 80) -> Array:
    """A kernel's y [m, n]."""
    y = aligned((made.problem.m, made.op.n), FLOATS[made.op.output])
    y.view(np.uint8)[...] = 0x5A
    kernels.launch(library(), made.problem, {**made.tensors, "y": y}, tactic, workspace(made, tactic, sm))
    return y


def workspace(made: Layer, tactic: Tactic, sm: int) -> Array:
    """As large as the library wants it."""
    return aligned((kernels.workspace_bytes(library(), made.problem, tactic, sm),), np.uint8)


def exact_sums(made: Layer) -> npt.NDArray[np.int64]:
    """The oracle's accumulators."""
    return reference.accumulators(made.op, made.tensors["x"], made.tensors["weight"])


def exact(made: Layer) -> Array:
    """The oracle's y."""
    return reference.qlinear(made.op, *made.inputs())
