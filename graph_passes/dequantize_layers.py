"""Compute named layers with inputs in floating point, for a runtime that does not compute them in their codes.

    %s = Max(...)   %d = Div(%x, %s)
    %q = QuantizeLinear(%d, %one)   %a = DequantizeLinear(%q, %one)
    %w = DequantizeLinear(%codes, %scale)
    %m = MatMul(%a, %w)
    %y = Mul(%m, %s)
        ->
    %w = DequantizeLinear(%codes, %scale)
    %m = MatMul(%x, %w)                                        with weights=false: the weight stays codes
        ->
    %m = MatMul(%x, %w)      with %w = Cast<to=1>(%w16)        with weights=true: its values, stored in `store`

NVFP4, whose portable form is arithmetic (vditc.export.qdq_float), has the second form alone. Every value is the one that the codes stand
for: nothing is quantized anew. What the calibration did to a layer's input (balance, shift,
rotation) and to its bias stays, for its codes are of that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.errors import InputError
from vditc.float_codes import BLOCK, E2M1
from vditc.graph_passes.convert_compute_type import NUMPY
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import inserted, remove_unread
from vditc.graph_passes.patterns import QuantizedMatMul, blocked, producer, quantized_matmuls, weight_like
from vditc.graph_passes.spec import COMPUTE_TYPES
from vditc.graph_passes.subbyte_weights import codes_of

_SUMS = ("/Add_zero_point", "/Add_compensation")  # terms behind a product (vditc.export.qdq)


class Names(tuple[str, ...]):
    """Names of layers, written "a:b"."""

    def __new__(cls, text: str = "") -> Self:
        """As options are written."""
        return cls.of(part for part in text.split(":") if part)

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """From names."""
        return super().__new__(cls, names)

    def __str__(self) -> str:
        return ":".join(self)


NONE = Names()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DequantizeLayers(Pass):
    """Named `layers` with inputs, and `weights` if told, in floating point. Refusal: a layer with a term made of its input's codes."""

    name: ClassVar[str] = "dequantize-layers"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical"})

    layers: Names = NONE
    weights: bool = True
    store: str = "fp32"  # of the weights in the file

    def __post_init__(self) -> None:
        if self.store not in COMPUTE_TYPES:
            known = ", ".join(COMPUTE_TYPES)
            raise InputError(found=f"store={self.store}", wanted=f"one of {known}", where=f"pass {self.name}", fix="correct the option")

    def numerics(self) -> str:
        """Inputs of the layers are not rounded to codes any more."""
        return "dequantized"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring. InputError for a name of no quantized layer."""
        graph, refusals, modified = model.graph, list[Refusal](), False
        quantized = {str(q.matmul.name): q for q in quantized_matmuls(graph)}
        matmuls = {str(node.name): node for node in graph if node.op_type == "MatMul"}
        for layer in self.layers:
            matmul = matmuls.get(f"{layer}/MatMul")
            stored = None if matmul is None else _Stored.of(matmul)
            if matmul is None or stored is None:
                raise InputError(
                    found=f"layer {layer!r}",
                    wanted="a layer with a quantized weight",
                    where=f"pass {self.name}",
                    fix="see the layers with `vditc inspect`",
                )
            if stored.whole is not None and not self.weights:
                refusals.append(Refusal(str(matmul.name), "its codes are NVFP4, which are no weight of a float product"))
                continue
            if (product := quantized.get(str(matmul.name))) is not None:
                if reason := _of_codes(product):
                    refusals.append(Refusal(str(matmul.name), reason))
                    continue
                _float_input(graph, product)
                modified = True
            elif (x := _nvfp4_input(matmul)) is not None:
                _read_instead(graph, matmul, 0, x)
            if self.weights:
                self._float_weight(graph, matmul, stored)
                modified = True
        return Result(model, modified, tuple(refusals))

    def _float_weight(self, graph: ir.Graph, matmul: ir.Node, stored: _Stored) -> None:
        dtype = COMPUTE_TYPES[self.store]
        kind, name = NUMPY.get(dtype, np.dtype(np.float32)), f"{stored.codes.name}.{self.store}"

        def made() -> ir.TensorProtocol:
            return ir.tensor(stored.values().astype(kind), dtype=dtype, name=name)

        shape = ir.Shape(stored.codes.shape.numpy())
        value = ir.val(name, const_value=ir.LazyTensor(made, dtype=dtype, shape=shape, name=name, cache=False))
        graph.initializers.add(value)
        if dtype is not ir.DataType.FLOAT:
            value = inserted(graph, matmul, "Cast", [value], f"{stored.codes.name}/Cast_{self.store}", to=int(ir.DataType.FLOAT))
        _read_instead(graph, matmul, 1, value)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A weight [K, N] as codes and scales; `block`: along `axis`, 0 without; `whole`: NVFP4's scale of the tensor."""

    codes: ir.TensorProtocol
    scale: ir.TensorProtocol
    axis: int
    block: int
    whole: ir.TensorProtocol | None = None

    @classmethod
    def of(cls, matmul: ir.Node) -> Self | None:
        """What a MatMul reads as its weight; None for no constant codes."""
        if (made := _named(matmul.inputs[1], "Reshape")) is not None:
            scaled = producer(made.inputs[0], "Mul")
            values, scales = [] if scaled is None else [v.producer() for v in scaled.inputs if v is not None]
            gather = producer(values.inputs[0] if values is not None else None, "Gather")
            level = producer(scales.inputs[0] if scales is not None else None, "DequantizeLinear")
            cast = producer(gather.inputs[1] if gather is not None else None, "Cast")
            read = [] if cast is None or level is None else [cast.inputs[0], *level.inputs[:2]]
            codes, scale, whole = (value.const_value if value is not None else None for value in read)
            return None if codes is None or scale is None or whole is None else cls(codes, scale, 0, BLOCK, whole)
        cast = producer(matmul.inputs[1], "Cast")
        node = producer(matmul.inputs[1] if cast is None else cast.inputs[0], "DequantizeLinear")
        if node is None or not weight_like(node.outputs[0]):
            return None
        codes, scale = (value.const_value for value in node.inputs[:2] if value is not None)
        assert codes is not None and scale is not None
        block = node.attributes["block_size"].as_int() if blocked(node) else 0
        return cls(codes, scale, node.attributes.get_int("axis", 1) % 2, block)

    def values(self) -> npt.NDArray[np.float32]:
        """What the graph computes of it, float32; the codes are read now."""
        factors = self.scale.numpy().astype(np.float32)
        if self.whole is not None:
            values: npt.NDArray[Any] = self.codes.numpy().astype(np.uint8).view(E2M1).astype(np.float32)
            factors *= self.whole.numpy()
        else:
            integer = self.codes.dtype in (ir.DataType.INT8, ir.DataType.INT4)
            values = (codes_of(self.codes) if integer else self.codes.numpy()).astype(np.float32)
        if self.block:
            factors = np.repeat(factors, self.block, axis=self.axis)[tuple(map(slice, values.shape))]
        elif factors.ndim == 1:
            factors = factors[None, :] if self.axis else factors[:, None]
        return values * factors


def _named(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of NVFP4's form that ends in `value`."""
    node = producer(value, kind)
    return node if node is not None and str(node.name).endswith(f"/{kind}_nvfp4") else None


def _nvfp4_input(matmul: ir.Node) -> ir.Value | None:
    """x, where a MatMul reads x through NVFP4's codes and back."""
    made = _named(matmul.inputs[0], "Reshape")
    shape = producer(made.inputs[1], "Shape") if made is not None else None
    return None if shape is None else shape.inputs[0]


def _read_instead(graph: ir.Graph, node: ir.Node, index: int, value: ir.Value) -> None:
    """Another input, and without what computed the old one if nobody else reads it."""
    before = node.inputs[index]
    node.replace_input_with(index, value)
    open_ends = [None if before is None else before.producer()]
    while open_ends:
        one = open_ends.pop()
        if one is None or one.graph is None:  # a constant's, or removed by another way already
            continue
        above = [v.producer() for v in one.inputs if v is not None]
        if remove_unread(graph, [one]):
            open_ends += above


def _of_codes(product: QuantizedMatMul) -> str:
    """Why a layer cannot do without the codes of its input: a term behind its product is a sum of them."""
    layer, value = str(product.matmul.name).removesuffix("/MatMul"), (product.rescale or product.matmul).outputs[0]
    while (
        add := next((u.node for u in value.uses() if u.node.op_type == "Add" and str(u.node.name).startswith(f"{layer}/")), None)
    ) is not None:
        if str(add.name).endswith(_SUMS):
            return f"{add.name} is a sum of its input's codes"
        value = add.outputs[0]
    return ""


def _float_input(graph: ir.Graph, product: QuantizedMatMul) -> None:
    """x for its codes, and no scale behind the product."""
    quantize = product.quantize
    assert quantize is not None
    source = quantize if product.divide is None else product.divide
    rescale, x = product.rescale, source.inputs[0]
    if product.divide is None and (clip := producer(quantize.inputs[0], "Clip")) is not None:
        x = clip.inputs[0]
    if rescale is not None:
        old, new = rescale.outputs[0], product.matmul.outputs[0]
        if old.is_graph_output():
            new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(rescale, safe=True)
    assert x is not None
    _read_instead(graph, product.matmul, 0, x)
