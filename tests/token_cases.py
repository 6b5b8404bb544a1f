"""Problems of `vditc.QuantizeToken` for the tests of its body and of its kernel, and how near the oracle outputs must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tolerances
from hypothesis import strategies as st

from vditc.plugins.packing import unpack_tokens
from vditc.plugins.quantize_token import kernels
from vditc.plugins.quantize_token.op import MAX_SHARES, QuantizeToken
from vditc.plugins.quantize_token.reference import exact, quantize_token

Array = npt.NDArray[Any]
Case = tuple[QuantizeToken, dict[str, Array]]
TYPES = kernels.DTYPES


@st.composite
def operators(draw: st.DrawFn, plain: bool = False) -> QuantizeToken:
    """Any flags. `plain`: without sums, so that everything is exact."""
    flags = {name: draw(st.booleans()) for name in ("gated", "gain", "shift", "center", "balance", "total")}
    norm = "none" if plain else draw(st.sampled_from(["none", "layer", "rms"]))
    if norm != "none":
        flags |= {"weight": draw(st.booleans()), "bias": draw(st.booleans())}
    scaled = draw(st.sampled_from(["token", "token", "given"]))
    bits = draw(st.sampled_from([8, 6, 4, 3]))
    options: dict[str, Any] = {
        "bits": bits,
        "packed": bits <= 4 and draw(st.booleans()),
        "norm": norm,
        "epsilon": 1e-5 if norm != "none" else 0.0,
        "activation": "none" if plain or norm != "none" else draw(st.sampled_from(["none", "none", "gelu", "gelu_tanh"])),
        "scaled": scaled,
        "clip": scaled == "token" and draw(st.booleans()),
        "rotation": 0 if plain else draw(st.sampled_from([0, 0, 256])),
        "shares": draw(st.integers(0, MAX_SHARES)),
    }
    return QuantizeToken(**(options | flags))


@st.composite
def cases(draw: st.DrawFn, plain: bool = False, wide: bool = False) -> Case:
    """An operator and inputs for it by name. `wide`: thousands of channels too, and hard tokens, which a kernel has to stand."""
    op = draw(operators(plain))
    if op.rotation:
        k = 256 * draw(st.integers(1, 13 if wide else 3))
    elif op.packed:
        k = 32 * draw(st.integers(1, 100 if wide else 3))
    else:  # of few channels a norm or GELU may leave nothing but the rounding of what cancelled
        few = st.integers(1 if exact(op) else 16, 70)
        k = draw(st.one_of(few, st.integers(2, 400).map(lambda n: 8 * n), st.integers(2000, 2200)) if wide else few)
    leading = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    shapes = {}
    for name in kernels.BROADCAST:
        if name in op.inputs:
            first = draw(st.integers(0, len(leading)))
            last = draw(st.integers(first, len(leading)))
            shapes[name] = (*(size if first <= i < last else 1 for i, size in enumerate(leading)), k)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = tokens(random, leading, k, TYPES[draw(st.sampled_from(list(TYPES)))], hard=wide)
    return op, inputs(random, op, x, shapes)


def tokens(random: np.random.Generator, leading: tuple[int, ...], k: int, dtype: np.dtype[Any], *, hard: bool = False) -> Array:
    """Random tokens, some of them zeros; `hard`: some of one number, some with an outlier nearly as great as fp16 goes."""
    x = random.standard_normal((*leading, k)).astype(np.float32)
    kind = random.random(leading)
    x[kind < 0.15] = 0
    if hard:
        x[(kind > 0.15) & (kind < 0.3)] = np.float32(random.standard_normal() * 10)
        x[kind > 0.85, random.integers(k)] = 6e4
    return x.astype(dtype)


def inputs(random: np.random.Generator, op: QuantizeToken, x: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Random inputs beside x; `shapes` of those that are broadcast to it, where they are not [K]."""
    k = x.shape[-1]
    known = {"clip": (1,), "given": (), "alpha": (op.shares, k)} | dict(shapes)
    made: dict[str, Array] = {name: random.standard_normal(known.get(name, (k,))).astype(np.float32) for name in op.inputs}
    made |= {"x": x, "clip": np.asarray([0.7], np.float32), "given": np.asarray(0.03, np.float32)}
    if op.gated:
        made["gate"] = made["gate"].clip(-1, 1).astype(x.dtype)  # no fp16 overflows
        made["residual"] = made["residual"].astype(x.dtype)
    return {name: made[name] for name in op.inputs}


def check(op: QuantizeToken, given: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, Array]:
    """Equal to the oracle, as exactly as it must be. The outputs, with codes unpacked."""
    found, wanted = dict(found), quantize_token(op, *(given[name] for name in op.inputs))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
    if op.packed:
        found["codes"], wanted["codes"] = unpack_tokens(found["codes"]), unpack_tokens(wanted["codes"])
    if op.gated:  # one IEEE operation after another
        assert same(found["sum"], wanted["sum"])
    if exact(op):
        for name in {"codes", "scale", "total"} & wanted.keys():
            assert same(found[name], wanted[name]), name
    else:
        off = np.abs(found["codes"].astype(int) - wanted["codes"])
        assert off.max(initial=0) <= 1
        assert off.sum() <= max(tolerances.CODES_OFF * off.size, 3)  # a few where there are few
        if "scale" in wanted:
            assert near(found["scale"], wanted["scale"], tolerances.SCALE_OFF * wanted["scale"])
    scale = np.asarray(found.get("scale", given.get("given")), np.float64)
    codes = found["codes"].astype(np.float64)
    if op.total:  # of the very codes that came out
        assert same(found["total"], codes.sum(-1, keepdims=True).astype(np.float32) * scale.astype(np.float32))
    for r in range(op.shares):
        weighed = codes * given["alpha"][r]
        most = scale * np.abs(weighed).sum(-1, keepdims=True)
        assert near(found[f"share{r}"], scale * weighed.sum(-1, keepdims=True), tolerances.SCALE_OFF * most)
    return found


def same(found: Array, wanted: Array) -> bool:
    """Equal numbers, or both NaN."""
    return np.array_equal(found.astype(np.float64), wanted.astype(np.float64), equal_nan=True)


def near(found: Array, wanted: Array, allowed: Array) -> bool:
    """Off by what is allowed at most, or both NaN."""
    return bool(np.all((np.abs(found - wanted) <= allowed) | (np.isnan(found) & np.isnan(wanted))))


# What is no number, or none that has an end, and where in which token; others stay as they are.
ODD = {"nan": [np.nan], "inf": [np.inf], "minus inf": [-np.inf], "all": [-np.inf, np.inf, np.nan]}


def odd_case(op: QuantizeToken, odd: list[float], k: int, dtype: np.dtype[Any]) -> dict[str, Array]:
    """Inputs of six tokens, of which the third has these numbers in its middle."""
    random = np.random.default_rng(k)
    x = random.standard_normal((6, k)).astype(dtype)
    x[2, k // 2 : k // 2 + len(odd)] = odd
    return inputs(random, op, x, {})


ODD_OPERATORS = [
    QuantizeToken(total=True, shares=1),
    QuantizeToken(bits=4, packed=True, clip=True, total=True),
    QuantizeToken(bits=4, scaled="given", packed=True, total=True, shares=1),
    QuantizeToken(scaled="given", total=True),
    QuantizeToken(gated=True, gain=True, shift=True),
    QuantizeToken(norm="layer", epsilon=1e-6, weight=True, total=True),
    QuantizeToken(norm="rms", epsilon=1e-6, total=True),
    QuantizeToken(activation="gelu"),
    QuantizeToken(activation="gelu_tanh", total=True),
    QuantizeToken(rotation=256, total=True),
    *(QuantizeToken(activation=name, scaled="given", total=True) for name in ("gelu", "gelu_tanh")),
]
