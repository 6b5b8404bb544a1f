"""Small graphs in the lowered form (fp16, quantized matmuls in an fp32 island), built by hand for the tests of the runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

WIDTH, HEADS, HEAD = 128, 2, 64


class Graph:
    """Appends nodes and initialisers; names them as the exporter does."""

    def __init__(self, scheme: str, wide_attention: bool = False) -> None:
        self.scheme = scheme  # "w8a8" | "w8a8-half", which overflows | "w4a16" | "w4a16-channel" | "w8a16" | "fp16"
        self.wide_attention = wide_attention  # float32 attention, which no kernel fuses
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        self.quantized: dict[str, tuple[str, str]] = {}

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name + ":0"], name=name, **attributes))
        return name + ":0"

    def const(self, name: str, kind: int, shape: tuple[int, ...], values: object) -> str:
        if name not in {w.name for w in self.weights}:
            self.weights.append(helper.make_tensor(name, kind, shape, np.asarray(values).reshape(-1).tolist()))
        return name

    def scalar(self, value: float, kind: int = T.FLOAT) -> str:
        return self.const(f"const_{kind}_{value}", kind, (), [value])

    def ints(self, *values: int) -> str:
        return self.const("ints_" + "_".join(map(str, values)), T.INT64, (len(values),), values)

    def half_product(self, layer: str, x: str, n: int, k: int) -> str:
        """A per-tensor W8A8 product whose scales are float16: the engine's product writes float16 sums."""
        scale = self.scalar(0.02, T.FLOAT16)
        codes = self.op("QuantizeLinear", [x, scale], f"{layer}/QuantizeLinear", output_dtype=T.INT8)
        weight = self.const(f"{layer}.weight", T.INT8, (k, n), self.rng.integers(-127, 128, (k, n)))
        weight_scale = self.const(f"{layer}.weight_scale", T.FLOAT16, (n,), self.rng.random(n) + 0.01)
        wide = self.op("DequantizeLinear", [weight, weight_scale], f"{layer}/weight", axis=1)
        return self.op("MatMul", [self.op("DequantizeLinear", [codes, scale], f"{layer}/DequantizeLinear"), wide], f"{layer}/MatMul")

    def quantize(self, layer: str, x: str) -> tuple[str, str]:
        """x fp16 -> (dequantized codes fp32, per-token scale fp32); shared by every layer that reads x."""
        if x not in self.quantized:
            wide = self.op("Cast", [x], f"{layer}/Cast", to=T.FLOAT)
            top = self.op("ReduceMax", [self.op("Abs", [wide], f"{layer}/Abs"), self.ints(-1)], f"{layer}/ReduceMax", keepdims=1)
            ratio = self.op("Div", [top, self.scalar(127.0)], f"{layer}/scale")
            scale = self.op("Max", [ratio, self.scalar(1e-8)], f"{layer}/Max")
            codes = self.op(
                "QuantizeLinear",
                [self.op("Div", [wide, scale], f"{layer}/Div"), self.scalar(1.0)],
                f"{layer}/QuantizeLinear",
                output_dtype=T.INT8,
            )
            self.quantized[x] = self.op("DequantizeLinear", [codes, self.scalar(1.0)], f"{layer}/DequantizeLinear"), scale
        return self.quantized[x]

    def linear(self, layer: str, x: str, n: int = WIDTH, k: int = WIDTH, scheme: str | None = None) -> str:
        scheme = scheme or self.scheme
        bias = self.const(f"{layer}.bias", T.FLOAT16, (n,), self.rng.standard_normal(n))
        if scheme == "w8a8":
            codes, scale = self.quantize(layer, x)
            weight = self.const(f"{layer}.weight", T.INT8, (k, n), self.rng.integers(-127, 128, (k, n)))
            weight_scale = self.const(f"{layer}.weight_scale", T.FLOAT, (n,), self.rng.random(n) + 0.01)
            wide = self.op("DequantizeLinear", [weight, weight_scale], f"{layer}/weight", axis=1)
            product = self.op("MatMul", [codes, wide], f"{layer}/MatMul")
            return self.op(
                "Add",
                [self.op("Cast", [self.op("Mul", [product, scale], f"{layer}/Mul")], f"{layer}/out", to=T.FLOAT16), bias],
                f"{layer}/Add",
            )
        if scheme == "w8a8-half":
            return self.op("Add", [self.half_product(layer, x, n, k), bias], f"{layer}/Add")
        if scheme == "w4a16-channel":
            codes = self.const(f"{layer}.weight", T.INT4, (k, n), self.rng.integers(-8, 8, (k, n)))
            weight_scale = self.const(f"{layer}.weight_scale", T.FLOAT16, (n,), self.rng.random(n) + 0.01)
            wide = self.op("DequantizeLinear", [codes, weight_scale], f"{layer}/weight", axis=1)
        elif scheme == "w4a16":
            codes = self.const(f"{layer}.weight", T.INT4, (k, n), self.rng.integers(-8, 8, (k, n)))
            weight_scale = self.const(f"{layer}.weight_scale", T.FLOAT16, (k // 64, n), self.rng.random((k // 64, n)) + 0.01)
            wide = self.op("DequantizeLinear", [codes, weight_scale], f"{layer}/weight", axis=0, block_size=64)
        elif scheme == "w8a16":
            codes = self.const(f"{layer}.weight", T.INT8, (k, n), self.rng.integers(-127, 128, (k, n)))
            weight_scale = self.const(f"{layer}.weight_scale", T.FLOAT16, (n,), self.rng.random(n) + 0.01)
            wide = self.op("DequantizeLinear", [codes, weight_scale], f"{layer}/weight", axis=1)
        else:
            wide = self.const(f"{layer}.weight", T.FLOAT16, (k, n), self.rng.standard_normal((k, n)))
        return self.op("Add", [self.op("MatMul", [x, wide], f"{layer}/MatMul"), bias], f"{layer}/Add")

    def norm(self, name: str, x: str) -> str:
        ones = self.const("ones", T.FLOAT16, (WIDTH,), np.ones(WIDTH))
        return self.op("LayerNormalization", [x, ones], name, axis=-1)

    def heads(self, name: str, x: str, perm: list[int]) -> str:
        split = self.op("Reshape", [x, self.ints(0, 0, HEADS, HEAD)], f"{name}/split")
        return self.op("Transpose", [split], f"{name}/heads", perm=perm)

    def attention(self, name: str, x: str, context: str) -> str:
        q, k, v = (self.linear(f"{name}.to_{c}", x if c == "q" else context) for c in "qkv")
        root = self.scalar(HEAD**-0.25, T.FLOAT16)  # as torch decomposes scaled dot product attention
        left = self.op("Mul", [self.heads(f"{name}.q", q, [0, 2, 1, 3]), root], f"{name}/scale_q")
        right = self.op("Mul", [self.heads(f"{name}.k", k, [0, 2, 3, 1]), root], f"{name}/scale_k")
        values = self.heads(f"{name}.v", v, [0, 2, 1, 3])
        if self.wide_attention:
            left, right, values = (self.op("Cast", [x], f"{name}/wide_{i}", to=T.FLOAT) for i, x in enumerate((left, right, values)))
        scores = self.op("Softmax", [self.op("MatMul", [left, right], f"{name}/qk")], f"{name}/Softmax", axis=-1)
        mixed = self.op("MatMul", [scores, values], f"{name}/av")
        if self.wide_attention:
            mixed = self.op("Cast", [mixed], f"{name}/narrow", to=T.FLOAT16)
        joined = self.op("Transpose", [mixed], f"{name}/join", perm=[0, 2, 1, 3])
        return self.linear(f"{name}.to_out.0", self.op("Reshape", [joined, self.ints(0, 0, WIDTH)], f"{name}/flat"))

    def block(self, number: int, x: str, text: str) -> str:
        b = f"blocks.{number}"
        x = self.op("Add", [x, self.attention(f"{b}.attn1", n := self.norm(f"{b}.norm1", x), n)], f"{b}/residual1")
        x = self.op("Add", [x, self.attention(f"{b}.attn2", self.norm(f"{b}.norm2", x), text)], f"{b}/residual2")
        wide = self.linear(f"{b}.ffn.net.0.proj", self.norm(f"{b}.norm3", x), n=2 * WIDTH)
        hidden = self.op("Gelu", [wide], f"{b}/Gelu", approximate="tanh")
        return self.op("Add", [x, self.linear(f"{b}.ffn.net.2", hidden, k=2 * WIDTH)], f"{b}/residual3")

    def save(self, path: Path, output: str) -> Path:
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = "velocity" if name == output else name
        graph = helper.make_graph(
            self.nodes,
            "lowered",
            [
                helper.make_tensor_value_info("hidden_states", T.FLOAT16, ["batch", "tokens", WIDTH]),
                helper.make_tensor_value_info("encoder_hidden_states", T.FLOAT16, ["batch", "text_tokens", WIDTH]),
            ],
            [helper.make_tensor_value_info("velocity", T.FLOAT16, ["batch", "tokens", WIDTH])],
            self.weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return path


LAYERS = [
    f"blocks.0.{name}"
    for name in (
        *(f"attn{a}.to_{c}" for a in (1, 2) for c in ("q", "k", "v", "out.0")),
        "ffn.net.0.proj",
        "ffn.net.2",
    )
]


def save_product(path: Path, scheme: str) -> Path:
    """One linear layer `l` of hidden_states; the other input is added."""
    graph = Graph(scheme)
    return graph.save(path, graph.op("Add", [graph.linear("l", "hidden_states"), "encoder_hidden_states"], "sum"))


def save_blocks(path: Path, scheme: str, blocks: int = 1, wide_attention: bool = False) -> Path:
    """Transformer blocks whose linears all have `scheme`."""
    graph, x = Graph(scheme, wide_attention), "hidden_states"
    for number in range(blocks):
        x = graph.block(number, x, "encoder_hidden_states")
    return graph.save(path, x)
