"""What golden files hold, made of the numpy oracles alone; a test holds the files to it. Writes them anew as a program:

PYTHONPATH=tests python tests/golden_cases.py
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import tolerances

from vditc.plugins.golden_file import SUFFIX, VERSION
from vditc.plugins.goldens import crc_of
from vditc.plugins.interface import ACTIVATIONS, FLOATS, NORMS
from vditc.plugins.packing import code_range, pack, pack_tokens
from vditc.plugins.qattention import reference as attention
from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.qlinear.reference import accumulators, qlinear
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.plugins.quantize_token.reference import exact, quantize_token
from vditc.safetensors_writer import tensor_file

Array = npt.NDArray[Any]
FOLDER = Path(__file__).parent / "plugins" / "goldens"
TYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One file: its metadata and tensors."""

    name: str
    facts: Mapping[str, Any]
    tensors: Mapping[str, Array]

    def write(self, folder: Path) -> None:
        """The same case gives the same bytes."""
        announced = {name: (a.dtype, a.shape) for name, a in self.tensors.items()}
        with tensor_file(folder / f"{self.name}{SUFFIX}", announced, {"vditc": json.dumps({"version": VERSION, **self.facts})}) as put:
            for name, array in self.tensors.items():
                put(name, array)


# name -> rows, the operator, how its tensors broadcast, what it is there for
_QLINEAR: dict[str, tuple[int, QLinear, dict[str, Any], str]] = {
    "w8a8_bias_fp16": (70, QLinear(n=96, k=160, bits=8, bias=True), {}, "rows that fill no tile"),
    "w8a8_wide_sums_fp32": (
        17,
        QLinear(n=40, k=1104, bits=8, output="fp32"),
        {"extreme": True},
        "sums beyond 2^24, which float32 does not hold",
    ),
    "w8a8_odd_sizes_bf16": (33, QLinear(n=45, k=112, bits=8, bias=True, output="bf16"), {}, "outputs and inputs that fill no block"),
    "w4a8_gelu_tanh_bf16": (130, QLinear(n=136, k=256, bits=4, bias=True, activation="gelu_tanh", output="bf16"), {}, "an up-projection"),
    "w4a8_gelu_fp32": (5, QLinear(n=64, k=64, bits=4, activation="gelu", output="fp32"), {"one_scale": True}, "one scale for all rows"),
    "w4a8_one_row_fp16": (1, QLinear(n=256, k=512, bits=4, bias=True), {}, "one row"),
    "w4a8_extreme_fp32": (16, QLinear(n=32, k=2048, bits=4, output="fp32"), {"extreme": True}, "all codes at the ends of their ranges"),
    "w4u_a8_rank1_fp16": (64, QLinear(n=128, k=192, bits=4, unsigned=True, rank=1, bias=True), {}, "codes 0 to 15 with a zero point"),
    "w3a6_rank3_gated_bf16": (
        66,
        QLinear(n=160, k=320, bits=3, activation_bits=6, rank=3, bias=True, gated=True, output="bf16"),
        {"gate_rows": (11, 2), "residual_rows": (1, 66)},
        "3-bit weights with corrections and a gate for each sample",
    ),
    "w3a8_rank4_fp16": (48, QLinear(n=64, k=96, bits=3, rank=4), {}, "as many outer products as there are"),
    "w4a4_packed_fp16": (
        128,
        QLinear(n=128, k=256, bits=4, activation_bits=4, packed=True, bias=True),
        {},
        "two codes a byte on both sides",
    ),
    "w4u_a4_packed_rank1_fp16": (
        40,
        QLinear(n=72, k=128, bits=4, activation_bits=4, packed=True, unsigned=True, rank=1, bias=True),
        {},
        "two codes a byte, weights unsigned",
    ),
    "w4a4_fp16": (72, QLinear(n=64, k=128, bits=4, activation_bits=4), {}, "4-bit codes in bytes of their own"),
    "w4a4_low_rank_fp16": (
        50,
        QLinear(n=128, k=128, bits=4, activation_bits=4, packed=True, low_rank=32, bias=True),
        {},
        "the branch of SVDQuant (arXiv 2411.05007)",
    ),
    "w4a8_group_fp16": (65, QLinear(n=96, k=384, bits=4, group=128, bias=True), {}, "scales of 128 inputs"),
    "w8a8_gated_fp16": (
        24,
        QLinear(n=64, k=64, bits=8, bias=True, gated=True),
        {"gate_rows": (1, 1), "residual_rows": (1, 24)},
        "one gate for all",
    ),
}


def qlinear_case(name: str) -> Case:
    """One of `_QLINEAR`."""
    m, op, how, about = _QLINEAR[name]
    random = np.random.default_rng(_seed(name))
    known = _layer(op, m, how, random)
    given = {part: known[part] for part in op.inputs}
    wanted_inputs = {**given, "gate": _spread(known["gate"], how.get("gate_rows", (1, 1)), m)} if op.gated else given
    y = qlinear(op, *(wanted_inputs[part] for part in op.inputs))
    tensors = {("bias" if part == "b" else part): array for part, array in given.items()} | {"y": y}
    if (allowed := tolerances.qlinear_allowed(op, wanted_inputs, y)) is not None:
        tensors["y.tolerance"] = allowed
    problem = {"n": op.n, "k": op.k, "m": m, "bits": op.bits, "activation_bits": op.activation_bits, "layout": op.layout}
    problem |= {
        name: int(value)
        for name, value in {"unsigned_weights": op.unsigned, "packed": op.packed, "bias": op.bias, "gated": op.gated}.items()
        if value
    }
    problem |= {name: value for name, value in {"group": op.group, "rank": op.rank, "low_rank": op.low_rank}.items() if value}
    problem |= {"activation": ACTIVATIONS[op.activation], "output": FLOATS[op.output], "scale_per_row": int(not how.get("one_scale"))}
    problem |= {rows: how[rows] for rows in ("gate_rows", "residual_rows") if op.gated}
    facts: dict[str, Any] = {"operator": "qlinear", "about": about, "problem": problem}
    if not op.group:
        facts["accumulators"] = crc_of(accumulators(op, given["x"], given["weight"]).astype(np.int32))
    return Case(f"qlinear_{name}", facts, tensors)


def _layer(op: QLinear, m: int, how: Mapping[str, Any], random: np.random.Generator) -> dict[str, Array]:
    (low, high), (least, most) = code_range(op.activation_bits), code_range(op.bits, unsigned=op.unsigned)
    if how.get("extreme"):
        x = np.where(random.random((m, op.k)) < 0.01, low, high).astype(np.int8)
        w = np.where(random.random((op.n, op.k)) < 0.01, least, most).astype(np.int8)
    else:
        x = random.integers(low, high + 1, (m, op.k), dtype=np.int8)
        w = random.integers(least, most + 1, (op.n, op.k), dtype=np.int8)
    out, branch = TYPES[op.output], TYPES["fp16" if op.output == "fp32" else op.output]
    rows = {name: how.get(f"{name}_rows", (1, 1))[1] for name in ("gate", "residual")}
    # So that y is of the order of 1, as activations are.
    unit = 1 / (most * high * np.sqrt(op.k))
    groups = (op.k // op.group,) if op.group else ()
    floats: dict[str, tuple[tuple[int, ...], Any]] = {
        "left": ((m, op.rank), np.float32),
        "right": ((op.rank, op.n), np.float32),
        "down": ((m, op.low_rank), branch),
        "up": ((op.low_rank, op.n), branch),
        "b": ((op.n,), np.float32),
        "gate": ((rows["gate"], op.n), out),
        "residual": ((rows["residual"], op.n), out),
    }
    made: dict[str, Array] = {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in floats.items()}
    return made | {
        "x": pack_tokens(x) if op.packed else x,
        "scale": (random.random(() if how.get("one_scale") else (m, 1)) + 0.5).astype(np.float32),
        "weight": pack(w, op.bits, unsigned=op.unsigned),
        "weight_scale": ((random.random((*groups, op.n)) + 0.5) * 3 * unit).astype(np.float32),
    }


_PLAIN: dict[str, Any] = {"dtype": "fp16", "m": 24, "k": 192, "spread": {}}
_TOKENS: dict[str, tuple[QuantizeToken, dict[str, Any], str]] = {
    "a8_fp16": (QuantizeToken(), {"k": 200}, "nothing but codes; a token of zeros"),
    "a8_fp32_odd": (QuantizeToken(total=True), {"dtype": "fp32", "k": 77}, "channels that fill no vector"),
    "a6_clip_total_bf16": (QuantizeToken(bits=6, clip=True, total=True), {"dtype": "bf16"}, "six bits and a range that is clipped"),
    "a8_given_balance_shares_fp16": (
        QuantizeToken(scaled="given", center=True, balance=True, total=True, shares=2),
        {},
        "a scale of the step, shift and balance that did not fold, Q-VDiT's sums (arXiv 2505.22167)",
    ),
    "a8_layer_modulated_bf16": (
        QuantizeToken(norm="layer", epsilon=1e-6, gain=True, shift=True),
        {"dtype": "bf16", "k": 384, "spread": {"gain": (12, 2), "shift": (12, 2)}},
        "AdaLN of two samples",
    ),
    "a4_packed_rms_rotation_fp16": (
        QuantizeToken(bits=4, packed=True, norm="rms", epsilon=1e-5, weight=True, rotation=256, total=True),
        {"k": 512},
        "a norm, blocks rotated, two codes a byte",
    ),
    "a4_packed_fp16": (QuantizeToken(bits=4, packed=True), {"k": 160}, "two codes a byte, exact"),
    "a8_gelu_tanh_bf16": (QuantizeToken(activation="gelu_tanh", balance=True), {"dtype": "bf16"}, "in front of a down-projection"),
    "a8_gelu_fp16": (QuantizeToken(activation="gelu"), {}, "GELU with erf"),
    "a8_gated_layer_fp16": (
        QuantizeToken(gated=True, norm="layer", epsilon=1e-6, weight=True, bias=True),
        {"spread": {"gate": (12, 2), "residual": (1, 24)}},
        "a residual stream that goes on",
    ),
    "a3_gated_fp32": (
        QuantizeToken(bits=3, gated=True),
        {"dtype": "fp32", "m": 9, "k": 64, "spread": {"gate": (1, 1), "residual": (3, 3)}},
        "exact behind a gate",
    ),
}


def quantize_token_case(name: str) -> Case:
    """One of `_TOKENS`."""
    op, own, about = _TOKENS[name]
    how = _PLAIN | own
    random = np.random.default_rng(_seed(name))
    m, k, dtype = how["m"], how["k"], TYPES[how["dtype"]]
    spread = {part: how["spread"].get(part, (1, 1)) for part in ("gain", "shift", "gate", "residual") if part in op.inputs}
    shapes: dict[str, tuple[int, ...]] = {
        "x": (m, k),
        "clip": (1,),
        "given": (),
        "alpha": (op.shares, k),
        **{p: (rows[1], k) for p, rows in spread.items()},
    }
    given = {part: random.standard_normal(shapes.get(part, (k,))).astype(np.float32) for part in op.inputs}
    given["x"] *= np.exp(random.standard_normal((m, 1))).astype(np.float32)  # tokens of different sizes
    if exact(op) and not op.gated:
        given["x"][m // 2] = 0
    given |= {
        part: value
        for part, value in {"clip": np.asarray([0.7], np.float32), "given": np.asarray(0.02, np.float32)}.items()
        if part in given
    }
    given |= {part: given[part].astype(dtype) for part in ("x", "gate", "residual") if part in given}
    whole = {part: _spread(array, spread[part], m) if part in spread else array for part, array in given.items()}
    outputs = quantize_token(op, *(whole[part] for part in op.inputs))
    problem: dict[str, Any] = {"k": k, "m": m, "input": FLOATS[how["dtype"]], "bits": op.bits}
    flags = ("packed", "clip", "gated", "weight", "bias", "gain", "shift", "center", "balance", "total", "rotation", "shares")
    problem |= {flag: int(getattr(op, flag)) for flag in flags if getattr(op, flag)}
    problem |= {"given": 1} if op.scaled == "given" else {}
    problem |= {"activation": ACTIVATIONS[op.activation], "norm": NORMS[op.norm], "epsilon": op.epsilon}
    problem |= {f"{part}_rows": rows for part, rows in spread.items()}
    facts: dict[str, Any] = {"operator": "quantize_token", "about": about, "problem": problem}
    facts |= {"codes_off": 0.0 if exact(op) else tolerances.CODES_OFF, "scale_off": tolerances.SCALE_OFF}
    return Case(f"quantize_token_{name}", facts, given | outputs)


# name -> sizes (batch, heads, queries, keys, channels), operator, type, about
_ATTENTION: dict[str, tuple[tuple[int, int, int, int, int], QAttention, str, str]] = {
    "d64_fp16": ((1, 2, 70, 90, 64), QAttention(scale=0.125, smooth_k=False), "fp16", "queries and keys that fill no tile"),
    "d128_smooth_bf16": ((1, 2, 65, 64, 128), QAttention(scale=128**-0.5), "bf16", "keys whose mean is taken away"),
    "d72_mask_by_token_fp16": (
        (2, 1, 33, 48, 72),
        QAttention(scale=72**-0.5, smooth_k=False, mask=True, q_by_token=True, k_by_token=True, v_by_token=True, y_by_token=True),
        "fp16",
        "a width that is padded, text that is masked, tokens before heads",
    ),
}


def qattention_case(name: str) -> Case:
    """One of `_ATTENTION`."""
    (batch, heads, queries, keys, width), op, kind, about = _ATTENTION[name]
    random, dtype = np.random.default_rng(_seed(name)), TYPES[kind]

    def array(part: str, tokens: int) -> Array:
        by_token = getattr(op, f"{part}_by_token")
        return random.standard_normal((batch, tokens, heads, width) if by_token else (batch, heads, tokens, width)).astype(np.float32)

    q, k, v = array("q", queries), array("k", keys), array("v", keys)
    if op.smooth_k:
        # Multiples of 1/16 below 4, and a power of two of keys: every order of summation gives the same mean, so that codes are exact.
        assert keys & (keys - 1) == 0
        k = np.clip(np.rint(k * 16), -63, 63) / np.float32(16) + np.float32(0.5)
    tensors: dict[str, Array] = {"q": q.astype(dtype), "k": k.astype(dtype), "v": v.astype(dtype)}
    if op.mask:
        tensors["mask"] = np.where(random.random((batch, 1, 1, keys)) < 0.3, -np.inf, 0).astype(dtype)
    given = [tensors[part] for part in op.inputs]
    y = attention.qattention(op, *given)
    allowed = attention.heads_first(attention.tolerance(op, *given), op.y_by_token)
    sums = attention.sums(op, tensors["q"], attention.key_codes(op, tensors["k"])[0])
    problem: dict[str, Any] = {"batch": batch, "heads": heads, "head_dim": width, "queries": queries, "keys": keys, "type": FLOATS[kind]}
    problem |= {"smooth_k": int(op.smooth_k), "mask": int(op.mask), "scale": op.scale}
    for part, tokens in (("q", queries), ("k", keys), ("v", keys), ("y", queries)):
        inside = (heads * width, width) if getattr(op, f"{part}_by_token") else (width, tokens * width)
        problem[f"{part}_strides"] = (tokens * heads * width, *inside)
    problem |= {"mask_stride": keys} if op.mask else {}
    facts = {"operator": "qattention", "about": about, "problem": problem, "scores": crc_of(sums.astype(np.int32))}
    return Case(f"qattention_{name}", facts, {**tensors, "y": y, "y.tolerance": np.ascontiguousarray(allowed, np.float32)})


def _spread(array: Array, rows: tuple[int, int], m: int) -> Array:
    """The row that every row of the result reads."""
    inner, count = rows
    return array[np.arange(m) // inner % count]


def _seed(name: str) -> list[int]:
    return list(name.encode())


def cases() -> Iterator[Case]:
    """All of them."""
    yield from map(qlinear_case, _QLINEAR)
    yield from map(quantize_token_case, _TOKENS)
    yield from map(qattention_case, _ATTENTION)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for one in cases():
        one.write(FOLDER)
    print(f"{sum(p.stat().st_size for p in FOLDER.iterdir()) / 1e6:.2f} MB, {len(list(FOLDER.iterdir()))} files")
