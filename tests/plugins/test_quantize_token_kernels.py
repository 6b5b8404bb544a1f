"""The kernel of `vditc.QuantizeToken`, its own source in the emulator, computes what the oracle does, for all flags and widths."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import token_cases
from hypothesis import example, given, settings
from hypothesis import strategies as st
from token_cases import ODD, ODD_OPERATORS, TYPES, Case, cases, inputs, odd_case

from vditc.plugins.emulated import emulated_library
from vditc.plugins.interface import QuantizeTokenProblem
from vditc.plugins.library import KernelError, Library, Rows
from vditc.plugins.packing import code_range, unpack_tokens
from vditc.plugins.quantize_token import kernels
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.plugins.quantize_token.reference import exact

Array = npt.NDArray[Any]
WIDTHS = (1024, 1152, 1536, 1920, 2048, 2304, 2560, 3072, 4096, 5120, 6144, 8960, 10240, 12288, 13824, 14336, 16384, 24576, 32768)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(emulated_library())


def check(library: Library, op: QuantizeToken, given: dict[str, Array]) -> dict[str, Array]:
    """The kernel's outputs with codes unpacked, which are the oracle's as exactly as they must be."""
    return token_cases.check(op, given, kernels.run(library, op, given))


@settings(max_examples=250, deadline=None)
@given(cases(wide=True))
def test_kernel_is_the_oracle(library: Library, case: Case) -> None:
    check(library, *case)


@settings(max_examples=100, deadline=None)
@given(cases(plain=True, wide=True))
def test_codes_are_exact_without_sums(library: Library, case: Case) -> None:
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


@pytest.mark.parametrize("odd", list(ODD))
@pytest.mark.parametrize("op", ODD_OPERATORS, ids=lambda op: op.overload)
def test_what_is_no_number_stays_in_its_token(library: Library, op: QuantizeToken, odd: str) -> None:
    unit = op.rotation or (32 if op.packed else 1)
    for k, dtype in itertools.product([k for k in (64, 77, 256, 3072) if k % unit == 0], TYPES.values()):
        given = odd_case(op, ODD[odd], k, dtype)
        out = check(library, op, given)
        good = kernels.run(library, op, given | {"x": np.delete(given["x"], 2, axis=0)})
        codes = unpack_tokens(good["codes"]) if op.packed else good["codes"]
        assert np.array_equal(np.delete(out["codes"], 2, axis=0), codes)
        if op.scaled == "token":
            assert np.isnan(out["scale"][2]) and not out["codes"][2].any()
            assert np.array_equal(np.delete(out["scale"], 2, axis=0), good["scale"])


@pytest.mark.parametrize("given", [np.nan, np.inf, 0.0, -1.0])
def test_a_given_scale_that_is_none_makes_no_codes(library: Library, given: float) -> None:
    x = np.asarray([[1.0, -1.0, np.nan, np.inf, 0.0, 3e38, -np.inf, 1e-40]], np.float32)
    assert not check(library, QuantizeToken(scaled="given"), {"x": x, "given": np.asarray(given, np.float32)})["codes"].any()


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
    unit = 4 if name in ("clip", "scale", "total", "share0", "share1") else 16  # one number of a row, or vectors
    refused(library, made, tensors, f"{said} lies at 0x.*multiple of {unit} ", **{name: tensors[name].ctypes.data + unit // 2})
    kernels.launch(library, made, {name: tensor.ctypes.data for name, tensor in tensors.items()})  # as it is, it is fine


@pytest.mark.parametrize("k", [64, 77])
def test_tensors_at_the_addresses_of_their_elements(library: Library, k: int) -> None:
    """Rows that are no vectors are read one by one, wherever they begin; so is what has one number of a row, or of all."""
    op = QuantizeToken(gated=True, gain=True, balance=True, clip=True, total=True, shares=1)
    random = np.random.default_rng(k)
    given = inputs(random, op, random.standard_normal((3, k)).astype(np.float16), {"gain": (3, k)})
    wanted = kernels.run(library, op, given)
    single = {"clip", "scale", "total", "share0"}
    placed: dict[str, Array] = {}
    for name, array in (given | wanted).items():
        moved = array.itemsize if k % 8 or name in single else 0
        room = kernels.empty((array.nbytes + 16,), np.dtype(np.uint8))
        placed[name] = room[moved : moved + array.nbytes].view(array.dtype).reshape(array.shape)
        placed[name][...] = given.get(name, 0)
    rows = {name: kernels.rows_of(given[name].shape, (3, k)) for name in kernels.BROADCAST if name in given}
    made = kernels.problem(op, m=3, k=k, dtype="fp16", rows=rows)
    kernels.launch(library, made, {name: array.ctypes.data for name, array in placed.items()})
    for name, array in wanted.items():
        assert np.array_equal(placed[name], array), name


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
