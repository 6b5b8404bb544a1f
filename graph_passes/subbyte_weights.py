"""The weights of `vditc.QLinear` out of a graph's codes [K, N]: in how many bits, packed, and in scales of channels instead of groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.graph_passes.tensor_bytes import tensor_bytes
from vditc.numerics import EPS
from vditc.plugins.packing import BLOCK, pack, packed_bytes
from vditc.plugins.packing_pairs import pack_pairs
from vditc.plugins.qlinear.op import GROUP, QLinear

_FEW = 1 << 16  # bytes
_HIGH = 127  # of codes of eight bits
Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


def bits_of(codes: ir.TensorProtocol) -> int:
    """Three when every code of four bits fits in three."""
    if codes.dtype is ir.DataType.INT8:
        return 8
    stored = tensor_bytes(codes)
    for begin in range(0, len(stored), _FEW):  # the first ones of four-bit codes tell
        part = stored[begin : begin + _FEW]
        if ((part ^ part >> np.uint8(1)) & np.uint8(0x44)).max(initial=0):  # the upper two bits of a code of three are its sign
            return 4
    return 3


def codes_of(tensor: ir.TensorProtocol) -> Codes:
    """int8 [K, N], read now."""
    k, n = tensor.shape.numpy()
    stored = tensor_bytes(tensor)
    if tensor.dtype is ir.DataType.INT4:
        pairs = stored.astype(np.uint16)
        pairs |= pairs << np.uint16(4)
        pairs &= np.uint16(0x0F0F)
        stored = pairs.view(np.uint8)[: n * k]
        stored ^= np.uint8(8)
        stored -= np.uint8(8)
    return stored.view(np.int8).reshape(k, n)


def packed(codes: ir.TensorProtocol, op: QLinear) -> ir.LazyTensor:
    """[K, N] codes as the operator's weight, made when it is written."""
    if codes.dtype is ir.DataType.INT4 and op.bits != 8 and not (op.n % BLOCK or op.k % BLOCK):
        return ir.LazyTensor(
            lambda: ir.Tensor(pack_pairs(tensor_bytes(codes).reshape(op.k, op.n // 2), op.bits), name=f"{op.n} x {op.k}"),
            ir.DataType.INT8,
            ir.Shape([packed_bytes(op.n, op.k, op.bits)]),
            cache=False,
        )
    return _later(op, lambda: codes_of(codes))


@dataclasses.dataclass(frozen=True, eq=False)
class Requantized:
    """Codes of four bits with a scale for each 128 inputs, rounded anew to eight bits with a scale for each output.

    scale = max |w| / 127 over an output's weights w, which are their codes times their group's scale in float32; codes = rint(w / scale).
    """

    codes: ir.TensorProtocol
    groups: Floats  # [K / 128, N]
    scale: Floats  # [N]
    error: float  # |w' - w| / |w| over the layer

    @classmethod
    def of(cls, codes: ir.TensorProtocol, groups: Floats) -> Requantized:
        """The scales and what the rounding costs; reads the weight, a group of inputs at a time behind its codes."""
        whole = codes_of(codes)
        top = np.zeros(groups.shape[1], np.float32)
        for w in _groups(whole, groups):
            np.maximum(top, np.abs(w).max(axis=0), out=top)
        scale = np.maximum(top / np.float32(_HIGH), np.float32(EPS))
        lost = size = 0.0
        for w in _groups(whole, groups):
            lost += float(np.square(np.rint(w / scale) * scale - w, dtype=np.float64).sum())
            size += float(np.square(w, dtype=np.float64).sum())
        return cls(codes, groups, scale, (lost / size) ** 0.5 if size else 0.0)

    def packed(self, op: QLinear) -> ir.LazyTensor:
        """As the operator's weight, made when it is written."""

        def made() -> Codes:
            return np.concatenate([np.rint(w / self.scale).astype(np.int8) for w in _groups(codes_of(self.codes), self.groups)])

        return _later(op, made)


def _groups(codes: Codes, scales: Floats) -> Iterator[Floats]:
    """Weights [128, N] of each group."""
    for i, scale in enumerate(scales):
        yield codes[i * GROUP : (i + 1) * GROUP].astype(np.float32) * scale


def _later(op: QLinear, codes: Callable[[], Codes]) -> ir.LazyTensor:
    """What `codes` [K, N] gives, packed."""

    def made() -> ir.TensorProtocol:
        return ir.Tensor(pack(_turned(codes()), op.bits), name=f"{op.n} x {op.k}")

    return ir.LazyTensor(made, ir.DataType.INT8, ir.Shape([packed_bytes(op.n, op.k, op.bits)]), cache=False)


def _turned(codes: Codes) -> Codes:
    """[K, N] -> [N, K], in tiles that stay in a core's cache."""
    k, n = codes.shape
    out = np.empty((n, k), np.int8)
    for i in range(0, n, 128):
        for j in range(0, k, 256):
            out[i : i + 128, j : j + 256] = codes[j : j + 256, i : i + 128].T
    return out
