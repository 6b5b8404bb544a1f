"""How far a pass may move a graph's outputs: relative L2 distance between the graph before it and the graph after it, and why.

The one table of `vditc lower --verify` and of the tests.
"""

from __future__ import annotations

import onnx_ir as ir

from vditc.graph_passes.patterns import activation_bits, weight_like

# What a pass does to numbers (`Pass.numerics`): in words.
KINDS = {
    "exact": "the same operations on the same numbers",
    "rounding": "the same function of real numbers, its float32 operations in another order",
    "fp16": "what is not quantized is computed, or stored, in float16",
    "bf16": "what is not quantized is computed, or stored, in bfloat16",
    "requantized": "weights with a scale for each group of inputs are rounded anew, to 8 bits and a scale for each output",
    "dequantized": "named layers compute with inputs that are not quantized",
    "attention-int8": "the scores of attention are products of INT8 codes",
    "attention-bf16": "attention is computed in bfloat16",
}

# (kind, codes of the activations, or None where none is quantized) -> tolerance
TOLERANCES: dict[tuple[str, str | None], float] = {
    **dict.fromkeys([("exact", codes) for codes in (None, "int8", "int6", "int4", "int3", "fp8_e4m3", "fp4_e2m1")], 0.0),
    # float32 rounds by 6e-8; sums of some thousand terms and the layers behind them make it up to a hundred times as much.
    ("rounding", None): 1e-5,
    # A rounding next to a tie moves a code to its neighbour: 1/127, 1/31, 1/7, 1/3 of the greatest value, in a few elements, and every
    # layer behind it sees other numbers. 5e-4 on a random model of two blocks, 4e-3 on the bundled one.
    ("rounding", "int8"): 1e-2,
    ("rounding", "int6"): 4e-2,
    ("rounding", "int4"): 8e-2,
    ("rounding", "int3"): 1.2e-1,
    # Codes of floating point are as far apart as their values are large: 1/16 and 1/4 of a value.
    ("rounding", "fp8_e4m3"): 2e-2,
    ("rounding", "fp4_e2m1"): 4e-2,
    # float16 rounds by at most 2^-11 = 4.9e-4; errors of independent roundings average out over a few blocks. Bundled models: 7e-4; the
    # rest is for deeper ones.
    ("fp16", None): 2e-3,
    # A float16 rounding before QuantizeLinear moves values near a tie to the next code: a step of 1/127 of the greatest value. The bundled
    # models: 8e-3.
    ("fp16", "int8"): 2e-2,
    # The same with steps of 1/31, 1/7 and 1/3: 7e-3, 3e-2 and 5e-2 on a random model of two blocks.
    ("fp16", "int6"): 4e-2,
    ("fp16", "int4"): 1e-1,
    ("fp16", "int3"): 1.5e-1,
    # And of 1/16 and 1/4 of a value: 2e-2 on the bundled models, 2e-2 on a random one.
    ("fp16", "fp8_e4m3"): 3e-2,
    ("fp16", "fp4_e2m1"): 6e-2,
    # A weight with float16 scales was rounded to float16 behind its scale, and is not any more.
    ("dequantized", None): 2e-3,
    # What rounding the inputs to codes has cost: 3e-3 with a scale for every token, 2e-2 with one of the tensor, 1e-2 in INT6 and FP8 and
    # 3e-2 in NVFP4 on a random model of two blocks.
    ("dequantized", "int8"): 5e-2,
    ("dequantized", "int6"): 5e-2,
    ("dequantized", "fp8_e4m3"): 3e-2,
    ("dequantized", "fp4_e2m1"): 1e-1,
    # Codes of q and k are 1/254 of a token's greatest value away, independently of each other, so that scores of some ten channels and more
    # are away by less: 2e-3 on a random model of two blocks, 7e-3 on a bundled one.
    ("attention-int8", None): 1e-2,
    # And what that does to the codes behind it: 2e-3, 7e-3, 3e-2, 6e-3 (FP8) on the same model.
    ("attention-int8", "int8"): 2e-2,
    ("attention-int8", "int6"): 4e-2,
    ("attention-int8", "int4"): 1e-1,
    ("attention-int8", "int3"): 1.5e-1,
    ("attention-int8", "fp8_e4m3"): 3e-2,
    # bfloat16 rounds by at most 2^-9 = 2e-3, in attention alone: 8e-4 to 2.1e-3 on random models of four blocks.
    ("attention-bf16", None): 5e-3,
    # The codes behind it move as they do in float16: 6e-3 to 1e-2 on the same models in INT8.
    ("attention-bf16", "int8"): 2e-2,
    ("attention-bf16", "int6"): 4e-2,
    ("attention-bf16", "int4"): 1e-1,
    ("attention-bf16", "int3"): 1.5e-1,
    ("attention-bf16", "fp8_e4m3"): 3e-2,
    # Weights move: by 1/127 of an output's greatest weight over the root of 12, which is 0.8 % of Gaussian ones and up to 3 % of ones with
    # heavy tails, and a layer's output by as much; to that comes what an order of sums costs. 3.2e-3 on a random model of two blocks.
    ("requantized", None): 2e-3,
    ("requantized", "int8"): 5e-2,
    ("requantized", "int6"): 7e-2,
    ("requantized", "int4"): 1.3e-1,
    ("requantized", "int3"): 1.8e-1,
    ("requantized", "fp8_e4m3"): 5e-2,
    ("requantized", "fp4_e2m1"): 9e-2,
}
# Inputs that are not random (zeros, constant rows, outliers) may take so many times as much: their tokens are alike, or most of their
# codes are 0, so that errors average out less. The bundled models: up to 3.2e-2 with INT8 activations, 4.7e-2 with FP8, 1.3e-3 with none.
ADVERSARIAL = 3.0


def tolerance(kind: str, compute: str, codes: str | None) -> float | None:
    """Of a pass of that kind over a graph that computes in `compute` ("fp32", ...) and whose activations are in `codes`.

    None when there is no figure. Another order of float16 operations is as far away as float16 is.
    """
    return TOLERANCES.get((compute if kind == "rounding" and compute != "fp32" else kind, codes))


def activation_codes(graph: ir.Graph) -> str | None:
    """The coarsest codes that activations are rounded to, as a key of `TOLERANCES`; None where none is quantized."""
    found = {_codes(node) for node in graph if node.op_type == "QuantizeLinear" and not weight_like(node.inputs[0])}
    found |= {f"int{activation_bits(node)}" for node in graph if node.op_type == "QuantizeToken"}
    if any(node.op_type == "Round" and "_nvfp4" in (node.name or "") for node in graph):
        found.add("fp4_e2m1")
    order = ("int3", "fp4_e2m1", "int4", "fp8_e4m3", "int6", "int8")
    return next((codes for codes in order if codes in found), None)


def _codes(quantize: ir.Node) -> str:
    """By type, and by the Clip in front of a container that is wider than the codes."""
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    said = quantize.attributes.get_int("output_dtype", 0)
    dtype = ir.DataType(said) if said else zero.dtype if zero is not None else ir.DataType.UINT8
    if dtype is ir.DataType.FLOAT8E4M3FN:
        return "fp8_e4m3"
    return f"int{activation_bits(quantize)}"
