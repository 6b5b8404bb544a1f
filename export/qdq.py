"""Put the quantized weights of a calibration and the quantization of activations into a graph, in the canonical Q/DQ forms.

K in, N out; codes are stored [K, N]. Only operators of the standard domain; arithmetic is float32. A transform of the input
(vditc.transform) comes first: Sub(x, shift), Mul(x, balance), then the rotation as two small MatMuls, A^T x B of x as [tokens, n, p];
nothing of it where the codes and the bias of a v have it in them.

    weight-only   W = DequantizeLinear(codes int4[K, N], scale[K/G, N], axis=0, block_size=G); MatMul(x, Cast(W))
    dynamic       s = Max(ReduceMax(|x|) / qmax, EPS); q = QuantizeLinear(x / s, 1); MatMul(DequantizeLinear(q, 1), W) * s
    static        s = Gather(table[steps], step), then as above; without steps QuantizeLinear and DequantizeLinear take s

FP8 has the same forms with codes float8e4m3fn, which QuantizeLinear saturates. NVFP4 has its own: vditc.export.qdq_float.

With clips, a dynamic s is Max(ReduceMax(|x|) * Gather(clip[steps], step) / qmax, EPS). What follows the bias, each an Add of its own:

    bias_correction   b[N]
    zero_point        ReduceSum(xq) * s * offset[N]                    offset = -scale * zero_point of asymmetric weights
    compensation      ReduceSum(xq * alpha[K]) * s * beta[N]           before beta: [clips, T, -1] or [clips, -1, T] times frames[T]
    low_rank          x' down[K, R] up[R, N]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.calibration import LayerCalibration
from vditc.correction import ALPHA, BETA, BIAS, FRAMES, Correction
from vditc.errors import PrecisionError
from vditc.export.qdq_float import nvfp4_activation, nvfp4_weight
from vditc.export.weights import StreamedTensor, add_initializer, stored_type
from vditc.hadamard import factors
from vditc.numerics import EPS, Granularity, QType
from vditc.scheme import OFFSET, QuantSpec, scale_shape, zero_offset
from vditc.transform import BALANCE, DOWN, SHIFT, UP, Transform

STEP = "step"
_Quantized = tuple[ir.Value, ir.Value | None]  # the dequantized codes, and the scale to multiply the product with


def quantize_linears(graph: ir.Graph, linears: Mapping[str, list[ir.Node]], layers: Mapping[str, LayerCalibration]) -> None:
    """Rewrite the MatMul of every calibrated layer in place.

    `linears`: layer -> MatMuls over its weight [K, N], in graph order. Layers that read the same tensor with the same
    activation spec (and, when static, equal scales) share one quantization, named after the first of them. Adds the graph
    input `step` (int64 [1]) when some activation scale depends on it. PrecisionError names calibrated layers that the
    graph does not hold exactly once.
    """
    if lost := [name for name in layers if len(linears.get(name, ())) != 1]:
        raise PrecisionError(
            found=f"{len(lost)} calibrated layers without one MatMul of their own: {', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}",
            wanted="every calibrated layer exactly once in the graph",
            where="the traced model",
            fix="keep these layers in floating point with a rule of the recipe",
        )
    rewriter = _Rewriter(graph)
    for name, (matmul, *_) in linears.items():
        if name in layers:
            rewriter.quantize(name, matmul, layers[name])


class _Rewriter:
    """State of one rewrite: the quantized activations so far."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.activations: dict[tuple[ir.Value, QuantSpec, bytes], _Quantized] = {}
        self.transformed: dict[tuple[ir.Value, bytes], ir.Value] = {}
        self.sums: dict[ir.Value, ir.Value] = {}  # of an input's quantized channels

    def quantize(self, name: str, matmul: ir.Node, layer: LayerCalibration) -> None:
        x, plain = matmul.inputs
        assert x is not None and plain is not None
        self.at, self.layer, self.width = matmul, name, layer.weight.shape[1]
        activation, scale = layer.scheme.activation, None
        codes = x = self.transform(x, layer.transform.explicit)
        matmul.replace_input_with(0, x)
        if activation is not None:
            static = layer.activation_scale
            clip = layer.activation_clip
            key = (x, activation, b" ".join(b"-" if table is None else table.tobytes() for table in (static, clip)))
            if key not in self.activations:
                self.activations[key] = self.activation(x, activation, static, clip)
            codes, scale = self.activations[key]
            matmul.replace_input_with(0, codes)
        del self.graph.initializers[str(plain.name)]
        weight, offset = self.weight(layer)
        matmul.replace_input_with(1, weight)
        last = matmul
        if scale is not None:
            product = matmul.outputs[0]
            rescale = ir.node("Mul", [product, scale], name=f"{name}/Mul")
            rescale.outputs[0].name = rescale.name
            product.replace_all_uses_with(rescale.outputs[0])
            rescale.replace_input_with(0, product)
            self.graph.insert_after(matmul, rescale)
            last = rescale
        # Behind the bias, if there is one.
        self.end = next((use.node for use in last.outputs[0].uses() if use.node.name == f"{name}/Add"), last)
        if layer.correction.bias is not None:
            self.append(self.constant(f"{name}.{BIAS}", layer.correction.bias), BIAS)
        if offset is not None:
            self.append(self.op("Mul", self.total(codes, scale), offset, suffix="zero_point"), "zero_point")
        if layer.correction.alpha is not None:
            self.append(self.compensation(codes, scale, layer.correction), "compensation")
        if layer.transform.down is not None:
            self.append(self.branch(x, layer.transform), "low_rank")

    def append(self, term: ir.Value, suffix: str) -> None:
        """Add a term to the layer's output."""
        out = self.end.outputs[0]
        add = ir.node("Add", [out, term], name=f"{self.layer}/Add_{suffix}")
        add.outputs[0].name = add.name
        out.replace_all_uses_with(add.outputs[0])
        add.replace_input_with(0, out)
        self.graph.insert_after(self.end, add)
        self.end = add

    def total(self, codes: ir.Value, scale: ir.Value | None) -> ir.Value:
        """Sum of the quantized input over its channels [..., 1], once for all layers that read it."""
        if codes not in self.sums:
            self.sums[codes] = self.channel_sum(codes, scale, "total")
        return self.sums[codes]

    def channel_sum(self, x: ir.Value, scale: ir.Value | None, suffix: str) -> ir.Value:
        total = self.op("ReduceSum", x, self.constant("axis.last", np.array([-1], np.int64)), suffix=suffix, keepdims=1)
        return total if scale is None else self.op("Mul", total, scale, suffix=suffix)

    def compensation(self, codes: ir.Value, scale: ir.Value | None, correction: Correction) -> ir.Value:
        """The rank-1 term."""
        weighted = self.op("Mul", codes, self.constant(f"{self.layer}.{ALPHA}", correction.alpha), suffix="alpha")
        share = self.channel_sum(weighted, scale, "share")
        if correction.frames is not None and correction.order is not None:
            # The batch is the latents' first axis, whatever the layer's own axes are.
            clips = self.op("Shape", self.graph.inputs[0], suffix="clips", start=0, end=1)
            first, middle, last = correction.order.shape(0, len(correction.frames))
            rest = self.constant(f"compensation.{middle}.{last}", np.array([middle, last], np.int64))
            shape = self.op("Shape", share, suffix="frames")
            share = self.op("Reshape", share, self.op("Concat", clips, rest, suffix="frames", axis=first), suffix="frames_in")
            factors = correction.order.spread(correction.frames)
            share = self.op("Mul", share, self.constant(f"{self.layer}.{FRAMES}", factors), suffix="frames")
            share = self.op("Reshape", share, shape, suffix="frames_out")
        return self.op("Mul", share, self.constant(f"{self.layer}.{BETA}", correction.beta), suffix="beta")

    def transform(self, x: ir.Value, transform: Transform) -> ir.Value:
        """x' of x, once for all layers that want the same."""
        if transform.shift is None and transform.balance is None and transform.rotation is None:
            return x
        key = (x, transform.input_key())
        if key not in self.transformed:
            if transform.shift is not None:
                x = self.op("Sub", x, self.constant(f"{self.layer}.{SHIFT}", transform.shift), suffix="shift")
            if transform.balance is not None:
                x = self.op("Mul", x, self.constant(f"{self.layer}.{BALANCE}", transform.balance), suffix="balance")
            if transform.rotation is not None:
                x = self.rotation(x, transform.rotation)
            self.transformed[key] = x
        return self.transformed[key]

    def rotation(self, x: ir.Value, block: int) -> ir.Value:
        """Blocks of channels times the block's orthonormal matrix, x of any rank."""
        found = factors(block)
        assert found is not None, "a calibration holds only rotations that there are"
        left, right = found
        shape = self.op("Shape", x, suffix="rotation")
        parts = self.constant(f"rotation.{block}.shape", np.array([-1, len(left), len(right)], np.int64))
        x = self.op("Reshape", x, parts, suffix="rotation_in")
        if len(right) > 1:
            x = self.op("MatMul", x, self.constant(f"rotation.{block}.right", right), suffix="rotation_right")
        if len(left) > 1:
            x = self.op("MatMul", self.constant(f"rotation.{block}.left", np.ascontiguousarray(left.T)), x, suffix="rotation_left")
        return self.op("Reshape", x, shape, suffix="rotation_out")

    def branch(self, x: ir.Value, transform: Transform) -> ir.Value:
        """x' down^T up^T."""
        for part, factor in ((DOWN, transform.down), (UP, transform.up)):
            assert factor is not None
            name = f"{self.layer}.{part}"
            stored = self.constant(name, np.ascontiguousarray(factor.T))
            x = self.op("MatMul", x, self.op("Cast", stored, scope=name, to=ir.DataType.FLOAT), scope=name)
        return x

    def weight(self, layer: LayerCalibration) -> tuple[ir.Value, ir.Value | None]:
        """float32 [K, N] from codes and scale, and the offset [N] of asymmetric weights."""
        weight, name = layer.weight, f"{self.layer}.weight"
        if weight.spec.qtype is QType.FP4_E2M1:

            def parts() -> tuple[npt.NDArray[Any], ...]:
                codes, scale, _, whole = weight.stored(transposed=True)
                assert whole is not None
                return codes, scale, whole

            return nvfp4_weight(self, name, weight.shape, parts), None
        scale_dtype = np.dtype(np.float32) if layer.scheme.activation is not None else weight.scale_dtype

        def arrays() -> tuple[npt.NDArray[Any], ...]:
            codes, scale, zero_point, _ = weight.stored(transposed=True)
            offset = zero_offset(scale, zero_point)
            return codes, scale.astype(scale_dtype, copy=False), *(() if offset is None else (offset,))

        inputs = [
            StreamedTensor(name, stored_type(weight.spec.qtype), weight.shape[::-1], arrays, 0),
            StreamedTensor(f"{name}_scale", ir.DataType.from_numpy(scale_dtype), scale_shape(weight.shape, weight.spec)[::-1], arrays, 1),
        ]
        attributes: dict[str, Any] = {}
        match weight.spec.granularity:
            case Granularity.PER_GROUP:
                attributes = {"axis": 0, "block_size": weight.spec.group_size}
            case Granularity.PER_CHANNEL:
                attributes = {"axis": 1}
        value = self.op("DequantizeLinear", *(add_initializer(self.graph, t) for t in inputs), scope=name, **attributes)
        value = value if scale_dtype == np.float32 else self.op("Cast", value, scope=name, to=ir.DataType.FLOAT)
        if weight.spec.symmetric:
            return value, None
        return value, add_initializer(self.graph, StreamedTensor(f"{name}{OFFSET}", ir.DataType.FLOAT, weight.shape[:1], arrays, 2))

    def activation(
        self, x: ir.Value, spec: QuantSpec, static: npt.NDArray[np.float32] | None, clip: npt.NDArray[np.float32] | None
    ) -> _Quantized:
        """Quantize and dequantize x; the scale is None when the dequantization has applied it."""
        if spec.qtype is QType.FP4_E2M1:
            assert static is not None
            return nvfp4_activation(self, x, self.width, self.constant(f"{self.layer}.activation_scale", static)), None
        dtype = ir.DataType.FLOAT8E4M3FN if spec.qtype is QType.FP8_E4M3 else ir.DataType.INT8
        clipped = spec.qtype not in (QType.INT8, QType.FP8_E4M3)  # fewer bits travel in INT8 codes
        if static is None:
            per_token = spec.granularity is Granularity.PER_TOKEN
            axes = (self.constant("axis.last", np.array([-1], np.int64)),) if per_token else ()
            absmax = self.op("ReduceMax", self.op("Abs", x), *axes, keepdims=int(per_token))
            if clip is not None:
                table = self.constant(f"{self.layer}.activation_clip", clip)
                absmax = self.op("Mul", absmax, self.op("Gather", table, self.step_input(), axis=0, suffix="clip"), suffix="clip")
            share = self.op("Div", absmax, self.constant(f"qmax.{spec.qtype.value}", np.float32(spec.qtype.high)), suffix="scale")
            scale = self.op("Max", share, self.constant("eps", np.float32(EPS)))
        else:
            scale = self.constant(f"{self.layer}.activation_scale", static)
            if spec.per_step:
                scale = self.op("Gather", scale, self.step_input(), axis=0)
            elif not clipped:
                codes = self.op("QuantizeLinear", x, scale, output_dtype=dtype)
                return self.op("DequantizeLinear", codes, scale), None
        ratio = self.op("Div", x, scale)
        if clipped:
            bounds = (self.constant(f"{side}.{spec.qtype.value}", np.float32(getattr(spec.qtype, side))) for side in ("low", "high"))
            ratio = self.op("Clip", ratio, *bounds)
        one = self.constant("one", np.float32(1))
        codes = self.op("QuantizeLinear", ratio, one, output_dtype=dtype)
        return self.op("DequantizeLinear", codes, one), scale

    def op(self, kind: str, *inputs: ir.Value, scope: str = "", suffix: str = "", **attributes: Any) -> ir.Value:
        """A node before the current one, named `layer/Kind`, and its output."""
        name = f"{scope or self.layer}/{kind}" + (f"_{suffix}" if suffix else "")
        node = ir.node(kind, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.graph.insert_before(self.at, node)
        return node.outputs[0]

    def constant(self, name: str, array: Any) -> ir.Value:
        return add_initializer(self.graph, ir.tensor(np.asarray(array), name=name))

    def step_input(self) -> ir.Value:
        known = {value.name: value for value in self.graph.inputs}
        if STEP not in known:
            known[STEP] = ir.Input(STEP, ir.Shape([1]), ir.TensorType(ir.DataType.INT64))
            self.graph.inputs.append(known[STEP])
        return known[STEP]
