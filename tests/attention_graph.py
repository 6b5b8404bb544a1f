"""A canonical graph by hand: one attention with INT8 q and k per token, blocked INT4 v, RMSNorm, timestep modulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from vditc.axis import Axis

WIDTH, HEADS, TEXT = 64, 2, 5

TEXT_FORM = """
<ir_version: 10, opset_import: ["" : 21]>
attention (float[batch,text_tokens,64] hidden_states, float[batch] timestep) => (float[batch,text_tokens,64] velocity)
{
  freq = Unsqueeze(timestep, one_axis)
  angle = Mul(freq, frequencies)
  wave = Sin(angle)
  table_f = Cast<to=1>(table)
  modulated = MatMul(wave, table_f)
  scale = Unsqueeze(modulated, one_axis)
  norm = LayerNormalization<axis=-1>(hidden_states, ones)
  x = Mul(norm, scale)
  absolute = Abs(x)
  greatest = ReduceMax<keepdims=1>(absolute, last)
  ratio = Div(greatest, qmax)
  s = Max(ratio, floor)
  divided = Div(x, s)
  ["q/QuantizeLinear"] codes = QuantizeLinear<output_dtype=3>(divided, one)
  d = DequantizeLinear(codes, one)
  ["q/weight"] q_w = DequantizeLinear<axis=1>(q_codes, q_scale)
  ["q/MatMul"] q_product = MatMul(d, q_w)
  q_scaled = Mul(q_product, s)
  bias_f = Cast<to=1>(bias)
  q = Add(q_scaled, bias_f)
  ["k/weight"] k_w = DequantizeLinear<axis=1>(k_codes, k_scale)
  ["k/MatMul"] k_product = MatMul(d, k_w)
  k = Mul(k_product, s)
  squared = Pow(q, two)
  mean = ReduceMean<keepdims=1>(squared, last)
  mean_eps = Add(mean, eps)
  root = Sqrt(mean_eps)
  inverse = Reciprocal(root)
  q_normed = Mul(q, inverse)
  ["v/weight"] v_w16 = DequantizeLinear<axis=0, block_size=32>(v_codes, v_scale)
  v_w = Cast<to=1>(v_w16)
  v = MatMul(x, v_w)
  q_split = Reshape(q_normed, heads)
  k_split = Reshape(k, heads)
  v_split = Reshape(v, heads)
  q_heads = Transpose<perm=[0, 2, 1, 3]>(q_split)
  k_heads = Transpose<perm=[0, 2, 3, 1]>(k_split)
  v_heads = Transpose<perm=[0, 2, 1, 3]>(v_split)
  q_small = Mul(q_heads, softmax_scale)
  scores = MatMul(q_small, k_heads)
  ["softmax"] weights = Softmax<axis=-1>(scores)
  mixed = MatMul(weights, v_heads)
  joined = Transpose<perm=[0, 2, 1, 3]>(mixed)
  flat = Reshape(joined, together)
  velocity = Add(flat, hidden_states)
}
"""


def weights() -> dict[str, tuple[npt.NDArray[Any], ir.DataType | None]]:
    """Values by name, more than the graph reads; the second entry is the element type of codes."""
    rng = np.random.default_rng(0)

    def floats(*shape: int, scale: float = 1.0, dtype: type = np.float32) -> tuple[npt.NDArray[Any], None]:
        return (rng.standard_normal(shape) * scale).astype(dtype), None

    def codes(limit: int, dtype: ir.DataType) -> tuple[npt.NDArray[Any], ir.DataType]:
        return rng.integers(-limit, limit + 1, (WIDTH, WIDTH)).astype(np.int8), dtype

    return {
        "one_axis": (np.array([1]), None),
        "last": (np.array([-1]), None),
        "heads": (np.array([0, 0, HEADS, WIDTH // HEADS]), None),
        "together": (np.array([0, 0, WIDTH]), None),
        "frequencies": (np.geomspace(1e-4, 1, 16, dtype=np.float32), None),
        "table": floats(16, WIDTH, dtype=np.float16),
        "ones": (np.ones(WIDTH, np.float32), None),
        "qmax": (np.array(127, np.float32), None),
        "floor": (np.array(1e-8, np.float32), None),
        "one": (np.array(1, np.float32), None),
        "two": (np.array(2, np.float32), None),
        "eps": (np.array(1e-6, np.float32), None),
        "softmax_scale": (np.array((WIDTH / HEADS) ** -0.5, np.float32), None),
        "q_codes": codes(127, ir.DataType.INT8),
        "q_scale": (np.full(WIDTH, 0.001, np.float32), None),
        "bias": floats(WIDTH, scale=0.1, dtype=np.float16),
        "k_codes": codes(127, ir.DataType.INT8),
        "k_scale": (np.full(WIDTH, 0.001, np.float32), None),
        "v_codes": codes(7, ir.DataType.INT4),
        "v_scale": (np.full((WIDTH // 32, WIDTH), 0.02, np.float16), None),
        "zero": (np.array(1, np.int8), None),  # from here on: only for graphs that break a rule
        "k_blocks": (np.full((WIDTH // 32, WIDTH), 0.001, np.float32), None),
    }


def attention_model(text: str = TEXT_FORM) -> ir.Model:
    """The graph with its weights in memory."""
    model = ir.from_onnx_text(text)
    free = {v.name: v for node in model.graph for v in node.inputs if v is not None and v.producer() is None}
    for name, (array, dtype) in weights().items():
        if (value := free.get(name)) is not None:
            value.const_value = ir.tensor(array, dtype=dtype, name=name)
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
            model.graph.initializers.add(value)
    return model


ABOUT = {  # as the export writes it
    "axes": {name: Axis(default=2, unit="tokens").to_json() for name in ("batch", "text_tokens")},
    "presets": {},
    "fills": {"hidden_states": "normal", "timestep": "timestep"},
    "timesteps": [999.0, 500.5, 3.25],
}


def save_attention(path: Path, text: str = TEXT_FORM) -> Path:
    """`path` and, for what is larger than 256 bytes, `path` + ".data"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = attention_model(text)
    model.metadata_props["vditc"] = json.dumps(ABOUT)
    ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=256)
    return path


def feeds() -> dict[str, npt.NDArray[Any]]:
    """Random inputs."""
    rng = np.random.default_rng(1)
    return {
        "hidden_states": rng.standard_normal((2, TEXT, WIDTH), np.float32),
        "timestep": np.array([3.5, 700], np.float32),
    }


def run(path: Path, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The first output in ONNX Runtime on a CPU, at the level that changes no numerics."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output: npt.NDArray[Any] = session.run(None, inputs)[0]
    return output
