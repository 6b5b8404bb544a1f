"""The kernel of `vditc.QuantizeToken`, its own source in the emulator, computes what the oracle does, for all flags and widths."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vditc.plugins.emulated import emulated_library
from vditc.plugins.interface import QuantizeTokenProblem
from vditc.plugins.library import KernelError, Library, Rows
from vditc.plugins.packing import code_range, unpack_tokens
from vditc.plugins.quantize_token import kernels
from vditc.plugins.quantize_token.op import MAX_SHARES, QuantizeToken
from vditc.plugins.quantize_token.reference import exact, quantize_token

Array = npt.NDArray[Any]
WIDTHS = (1024, 1152, 1536, 1920, 2048, 2304, 2560, 3072, 4096, 5120, 6144, 8960, 10240, 12288, 13824, 14336, 16384, 24576, 32768)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(emulated_library())


def check(library: Library, op: QuantizeToken, given: dict[str, Array]) -> dict[str, Array]:
    """Equal to the oracle, as exactly as it must be. The outputs, with codes unpacked."""
    found, wanted = kernels.run(library, op, given), quantize_token(op, *(given[name] for name in op.inputs))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
    if op.packed:
        found["codes"], wanted["codes"] = unpack_tokens(found["codes"]), unpack_tokens(wanted["codes"])
    if op.gated:
        assert found["sum"].tobytes() == wanted["sum"].tobytes()
    if exact(op):
        for name in {"codes", "scale", "total"} & wanted.keys():
            assert np.array_equal(found[name], wanted[name]), name
    else:
        off = np.abs(found["codes"].astype(int) - wanted["codes"])
        assert off.max(initial=0) <= 1
        assert off.sum() <= max(tolerances.CODES_OFF * off.size, 3)  # a few where there are few
        if "scale" in wanted:
            assert np.all(np.abs(found["scale"] - wanted["scale"]) <= tolerances.SCALE_OFF * wanted["scale"])
    scale = np.asarray(found.get("scale", given.get("given")), np.float64)
    codes = found["codes"].astype(np.float64)
    if op.total:  # of the very codes that came out
        assert np.array_equal(found["total"], codes.sum(-1, keepdims=True).astype(np.float32) * scale.astype(np.float32))
    for r in range(op.shares):
        weighed = codes * given["alpha"][r]
        most = scale * np.abs(weighed).sum(-1, keepdims=True)
        assert np.all(np.abs(found[f"share{r}"] - scale * weighed.sum(-1, keepdims=True)) <= tolerances.SCALE_OFF * most)
    return found


def tokens(random: np.random.Generator, leading: tuple[int, ...], k: int, dtype: np.dtype[Any]) -> Array:
    """Random tokens; some are zeros, some of one number, some have an outlier nearly as great as fp16 goes."""
    x = random.standard_normal((*leading, k)).astype(np.float32)
    kind = random.random(leading)
    x[kind < 0.15] = 0
    x[(kind > 0.15) & (kind < 0.3)] = np.float32(random.standard_normal() * 10)
    x[kind > 0.85, random.integers(k)] = 6e4
    return x.astype(dtype)


def inputs(random: np.random.Generator, op: QuantizeToken, x: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Random inputs beside x; `shapes` of those that are broadcast to it."""
    k = x.shape[-1]
    shapes = {"clip": (1,), "given": (), "alpha": (op.shares, k)} | shapes
    made: dict[str, Array] = {name: random.standard_normal(shapes.get(name, (k,))).astype(np.float32) for name in op.inputs}
    made |= {"x": x, "clip": np.asarray([0.7], np.float32), "given": np.asarray(0.03, np.float32)}
    if op.gated:
        made["gate"] = made["gate"].clip(-1, 1).astype(x.dtype)  # no fp16 overflows
        made["residual"] = made["residual"].astype(x.dtype)
    return {name: made[name] for name in op.inputs}


@st.composite
def cases(draw: st.DrawFn, plain: bool = False) -> tuple[QuantizeToken, dict[str, Array]]:
    """An operator with any flags, and inputs for it. `plain`: without sums, so that everything is exact."""
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
    op = QuantizeToken(**(options | flags))
    if op.rotation:
        k = 256 * draw(st.integers(1, 13))
    elif op.packed:
        k = 32 * draw(st.integers(1, 100))
    else:  # of few channels a norm or GELU may leave nothing but the rounding of what cancelled
        k = draw(st.one_of(st.integers(1 if exact(op) else 16, 70), st.integers(2, 400).map(lambda n: 8 * n), st.integers(2000, 2200)))
    leading = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    shapes = {}
    for name in kernels.BROADCAST:
        if name in op.inputs:
            first = draw(st.integers(0, len(leading)))
            last = draw(st.integers(first, len(leading)))
            shapes[name] = (*(size if first <= i < last else 1 for i, size in enumerate(leading)), k)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = tokens(random, leading, k, kernels.DTYPES[draw(st.sampled_from(list(kernels.DTYPES)))])
    return op, inputs(random, op, x, shapes)


@settings(max_examples=250, deadline=None)
@given(cases())
def test_kernel_is_the_oracle(library: Library, case: tuple[QuantizeToken, dict[str, Array]]) -> None:
    check(library, *case)


@settings(max_examples=100, deadline=None)
@given(cases(plain=True))
def test_codes_are_exact_without_sums(library: Library, case: tuple[QuantizeToken, dict[str, Array]]) -> None:
    assert exact(case[0])
    check(library, *case)


@pytest.mark.parametrize("k", [*WIDTHS, 1153, 5124, 32767, 131072])
def test_widths(library: Library, k: int) -> None:
    """Of all families and of every instance of the kernel; the flags differ from width to width so that all meet all instances."""
    random = np.random.default_rng(k)
    x = random.standard_normal((2, 3, k)).astype(kernels.DTYPES[("fp32", "fp16", "bf16")[k % 3]])
    modulated: dict[str, Any] = {"norm": "layer", "epsilon": 1e-6, "gain": True, "shift": True, "total": True}
    variants: list[dict[str, Any]] = [{"total": True}, modulated, modulated | {"balance": True, "shares": 2, "bits": 4}]
    variants += [{"activation": "gelu_tanh"}, *([modulated | {"rotation": 256, "shares": 1}] if k % 256 == 0 else [])]
    shapes: dict[str, tuple[int, ...]] = {"gain": (2, 1, k), "shift": (2, 1, k), "gate": (2, 1, k), "residual": (2, 3, k)}
    for options, gated in itertools.product(variants, (False, True)):
        op = QuantizeToken(**options, gated=gated, packed=options.get("bits") == 4 and k % 32 == 0)
        check(library, op, inputs(random, op, x, shapes))


@pytest.mark.parametrize("leading", [(0,), (2, 0, 3), (1,), (5,)])
@pytest.mark.parametrize("k", [1152, 5120])
def test_few_tokens(library: Library, leading: tuple[int, ...], k: int) -> None:
    """None, one, and as many as fill a block and one more."""
    random = np.random.default_rng(0)
    op = QuantizeToken(norm="rms", epsilon=1e-6, gain=True, total=True)
    x = random.standard_normal((*leading, k)).astype(np.float16)
    check(library, op, inputs(random, op, x, {"gain": (k,)}))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1 << 34), st.integers(1, 1 << 34), st.integers(1, 400))
@example(1 << 31, 1 << 31, 100)
@example(1, 1 << 40, 1000)
@example(7, 3, 65537)  # more tokens than a grid has blocks in its second axis
def test_rows_of_broadcast_tensors(library: Library, inner: int, count: int, m: int) -> None:
    """Token r reads row (r / inner) mod count."""
    rows = np.arange(m) // inner % count
    gain = kernels.empty((int(rows.max()) + 1, 8), np.dtype(np.float32))
    gain[...] = np.arange(1, len(gain) + 1, dtype=np.float32)[:, None]
    x = kernels.empty((m, 8), np.dtype(np.float32))
    x[...] = 127
    codes, scale = kernels.empty((m, 8), np.dtype(np.int8)), kernels.empty((m,), np.dtype(np.float32))
    made = kernels.problem(QuantizeToken(gain=True), m=m, k=8, dtype="fp32", rows={"gain": Rows(inner, count)})
    kernels.launch(library, made, {"x": x.ctypes.data, "gain": gain.ctypes.data, "codes": codes.ctypes.data, "scale": scale.ctypes.data})
    assert np.array_equal(scale, (rows + 1).astype(np.float32))
    assert np.all(codes == 127)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-149, 127), st.sampled_from([8, 6, 4, 3]))
def test_quotients_are_those_of_ieee(library: Library, seed: int, exponent: int, bits: int) -> None:
    """Of any scale, also where the reciprocal is no normal number: numbers next to ties, any bits, the greatest and least there are."""
    random = np.random.default_rng(seed)
    scale = np.ldexp(np.float32(random.uniform(1, 2)), exponent).astype(np.float32)
    ties = (np.arange(-140, 140).astype(np.float32) + np.float32(0.5)) * np.float64(scale)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        near = np.concatenate([ties, np.arange(-140, 140) * np.float64(scale)]).astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
        anything = random.integers(0, 2**32, 400, np.uint32).view(np.float32)
        x = np.concatenate([near, anything])
        x = x[np.isfinite(x)][None]
        op = QuantizeToken(bits=bits, scaled="given", total=True)
        check(library, op, {"x": x, "given": np.asarray(scale)})


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_ties_go_to_even_and_codes_end_at_the_range(library: Library, bits: int) -> None:
    low, high = code_range(bits)
    x = np.asarray([[0.5, 1.5, -0.5, -1.5, 2.5, high + 9, low - 9, -0.0]], np.float32)
    out = kernels.run(library, QuantizeToken(bits=bits, scaled="given"), {"x": x, "given": np.ones((), np.float32)})
    assert out["codes"].tolist() == [[0, 2, 0, -2, 2, high, low, 0]]


@pytest.mark.parametrize("k", [64, 3072, 77])
@pytest.mark.parametrize("options", [{}, {"norm": "layer", "epsilon": 1e-6}, {"norm": "rms", "epsilon": 1e-6}, {"activation": "gelu"}])
def test_what_is_no_number_stays_in_its_token(library: Library, k: int, options: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    op = QuantizeToken(**options)
    x = random.standard_normal((6, k)).astype(np.float16)
    good = check(library, op, {"x": x})
    x[2, k // 2] = np.nan
    out = kernels.run(library, op, {"x": x})
    others = [0, 1, 3, 4, 5]
    assert np.isnan(out["scale"][2])
    assert np.array_equal(out["codes"][others], good["codes"][others])
    assert np.array_equal(out["scale"][others], good["scale"][others])


def test_a_mean_that_float32_cannot_hold(library: Library) -> None:
    """Equal numbers have no variance: what is left of them is nothing, although their sum is rounded."""
    x = np.full((4, 1152), 0.1, np.float32)
    x[1] = 1e6 / 3
    x[2] = 1000 + 0.1 * np.random.default_rng(0).standard_normal(1152)
    op = QuantizeToken(norm="layer", epsilon=1e-6)
    out = check(library, op, {"x": x})
    assert not out["codes"][:2].any()


def small() -> tuple[QuantizeTokenProblem, dict[str, Array]]:
    """A problem of two tokens of 64 channels with everything, and its tensors."""
    op = QuantizeToken(bits=4, gain=True, shift=True, clip=True, total=True, shares=2, packed=True, gated=True)
    rows = dict.fromkeys(kernels.BROADCAST, Rows(1, 1))
    made = kernels.problem(op, m=2, k=64, dtype="fp16", rows=rows)
    tensors = {name: kernels.empty((2, 64), np.dtype(np.float32)) for name in (*op.inputs, *op.outputs)}
    for tensor in tensors.values():
        tensor[...] = 0
    return made, tensors


def refused(library: Library, made: QuantizeTokenProblem, tensors: dict[str, Array], message: str, **moved: int) -> None:
    addresses = {name: tensor.ctypes.data for name, tensor in tensors.items()} | moved
    with pytest.raises(KernelError, match=message):
        kernels.launch(library, made, addresses)


WRONG: list[tuple[str, Any, str]] = [
    ("struct_bytes", 8, r"struct_bytes 8; wanted \d+"),
    ("k", 0, "k 0; wanted 1 ... 131072 channels"),
    ("k", 131073, "k 131073; wanted 1 ... 131072"),
    ("k", 48, "packed codes of 4 bits, k 48; wanted 4 or 3 bits and a multiple of 32"),
    ("bits", 8, "packed codes of 8 bits"),
    ("bits", 5, "bits 5; wanted 8, 6, 4 or 3"),
    ("m", -1, "m -1; wanted 0 ... 2147483647 tokens"),
    ("m", 1 << 31, "m 2147483648"),
    ("input", 3, "input 3; wanted a vditc_float_type"),
    ("input", -1, "input -1"),
    ("packed", 2, "packed 2; wanted 0 or 1"),
    ("given", 1, "a clip of a given scale"),
    ("gated", -1, "gated -1"),
    ("activation", 3, "activation 3"),
    ("norm", 3, "norm 3"),
    ("norm", 1, "epsilon 0 of a norm; wanted a positive number"),
    ("weight", 1, "weight 1, bias 0 without a norm"),
    ("rotation", 128, "rotation 128, k 64; wanted 0, or 256 and a multiple of it"),
    ("rotation", 256, "rotation 256, k 64"),
    ("shares", 5, "shares 5; wanted 0 ... 4"),
    ("gain_rows", Rows(0, 1), r"gain_rows \{inner 0, count 1\}; wanted positive numbers"),
    ("residual_rows", Rows(1, 0), r"residual_rows \{inner 1, count 0\}"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_problems_that_there_are_not(library: Library, field: str, value: Any, message: str) -> None:
    made, tensors = small()
    setattr(made, field, value)
    refused(library, made, tensors, message)


def test_a_norm_behind_an_activation(library: Library) -> None:
    made, tensors = small()
    made.norm, made.activation, made.epsilon = 1, 1, 1e-6
    refused(library, made, tensors, "activation 1 in front of norm 1")
    made.activation, made.epsilon = 0, float("inf")
    refused(library, made, tensors, "epsilon inf of a norm")


@pytest.mark.parametrize("name", small()[1])
def test_tensors_that_are_not_there_or_misaligned(library: Library, name: str) -> None:
    made, tensors = small()
    said = name.replace("share", "share[") + "]" if name.startswith("share") else name
    said = said.replace("[", r"\[").replace("]", r"\]")
    refused(library, made, tensors, f"{said} is null", **{name: 0})
    refused(library, made, tensors, f"{said} lies at 0x.*multiple of 16", **{name: tensors[name].ctypes.data + 8})
    kernels.launch(library, made, {name: tensor.ctypes.data for name, tensor in tensors.items()})  # as it is, it is fine


def test_structs_that_are_not_there(library: Library) -> None:
    made, _ = small()
    for arguments, message in (((None, None), "problem is null"), ((ctypes.byref(made), None), "tensors is null")):
        with pytest.raises(KernelError, match=message):
            library.call("vditc_quantize_token_launch", *arguments, None)


ROWS: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]]] = [
    ((8,), (2, 3, 8), (1, 1)),
    ((1, 1, 8), (2, 3, 8), (1, 1)),
    ((2, 1, 8), (2, 3, 8), (3, 2)),
    ((1, 3, 8), (2, 3, 8), (1, 3)),
    ((3, 8), (2, 3, 8), (1, 3)),
    ((2, 3, 8), (2, 3, 8), (1, 6)),
    ((1, 4, 1, 8), (2, 4, 5, 8), (5, 4)),
]


@pytest.mark.parametrize(("shape", "x", "rows"), ROWS)
def test_rows_of_shapes(shape: tuple[int, ...], x: tuple[int, ...], rows: tuple[int, int]) -> None:
    found = kernels.rows_of(shape, x)
    assert (found.inner, found.count) == rows
    reads: Callable[[int], int] = lambda r: r // found.inner % found.count  # noqa: E731
    own = np.arange(np.prod(shape[:-1], dtype=int)).reshape(shape[:-1])
    assert [reads(r) for r in range(int(np.prod(x[:-1])))] == np.broadcast_to(own, x[:-1]).ravel().tolist()


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 3, 8), (3, 1, 8), (1, 2, 3, 8)])
def test_shapes_that_have_no_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        kernels.rows_of(shape, (2, 4, 3, 8))
