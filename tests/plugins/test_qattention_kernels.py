"""The kernels of QAttention, run by the emulator: integers exact, the rest within the roundings that the oracle allows."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from attention_inputs import TYPES, Array, arrays, cases, check
from hypothesis import given, settings

from vditc.plugins.emulated import emulated_library
from vditc.plugins.interface import QAttentionProblem, QAttentionTensors
from vditc.plugins.library import KernelError, Library
from vditc.plugins.qattention.kernels import problem_of, products, qattention
from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qattention.reference import CODES_OFF, SCALE_OFF, heads_first, key_codes, sums, sums_off


@pytest.fixture(scope="module")
def library() -> Library:
    """The library for the CPU."""
    return Library(emulated_library())


def check_all(library: Library, op: QAttention, inputs: list[Array]) -> None:
    """Codes and products equal to the oracle's, the output near it."""
    found, codes, scale = products(library, op, *inputs)
    wanted = key_codes(op, inputs[1])
    width = inputs[0].shape[-1]
    np.testing.assert_array_equal(codes[..., :width], wanted[0])
    assert not codes[..., width:].any()
    np.testing.assert_array_equal(scale, wanted[1])
    np.testing.assert_array_equal(found, sums(op, inputs[0], wanted[0]))
    check(op, inputs, qattention(library, op, *inputs))


@settings(max_examples=25, deadline=None)
@given(made=cases())
def test_the_kernel_computes_what_the_oracle_does(library: Library, made: tuple[QAttention, list[Array]]) -> None:
    check_all(library, *made)


@pytest.mark.parametrize("keys", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 226, 300])
def test_tails_of_keys(library: Library, keys: int) -> None:
    """One key, ends within and at a step and a tile; 226 are those of CogVideoX's text."""
    op = QAttention(scale=0.125, mask=keys % 2 == 0)
    check_all(library, op, arrays(op, np.random.default_rng(keys), (1, 1, 3, keys, 72), TYPES["fp16"], exact=True))


@pytest.mark.parametrize("queries", [1, 15, 16, 17, 127, 128, 129])
def test_tails_of_queries(library: Library, queries: int) -> None:
    op = QAttention(scale=0.125, q_by_token=True, y_by_token=True)
    check_all(library, op, arrays(op, np.random.default_rng(queries), (1, 2, queries, 40, 64), TYPES["bf16"], exact=True))


def test_random_keys_have_codes_that_are_hardly_ever_off(library: Library) -> None:
    op = QAttention(scale=0.125)
    q, k, v = arrays(op, np.random.default_rng(0), (1, 2, 64, 1500, 64), TYPES["fp16"])
    k = (k + np.float16(3)).astype(np.float16)
    _, codes, scale = products(library, op, q, k, v)
    wanted = key_codes(op, k)
    off = np.abs(codes.astype(int) - wanted[0])
    assert off.max() <= 1 and off.mean() <= CODES_OFF
    assert (np.abs(scale - wanted[1]) <= SCALE_OFF * wanted[1]).all()
    check(op, [q, k, v], qattention(library, op, q, k, v), keys=(codes, scale))


@pytest.mark.parametrize("dtype", list(TYPES))
def test_numbers_near_the_end_of_float16(library: Library, dtype: str) -> None:
    """Values of 60,000, scores of thousands: sums of weights times values are far beyond float16, the result is not."""
    op = QAttention(scale=0.125)
    q, k, v = arrays(op, np.random.default_rng(1), (1, 1, 32, 200, 64), TYPES[dtype], exact=True)
    v = np.clip(v.astype(np.float32) * 3e4, -6e4, 6e4).astype(v.dtype)
    for size in (0, 256):  # equal weights, and nearly one key alone
        check_all(library, op, [(q.astype(np.float32) * size).astype(q.dtype), k, v])


def test_many_keys_that_weigh_little(library: Library) -> None:
    """4096 weights of 2^-26, below what float16 has, next to one of 1: together 2^-14 of the sum."""
    op = QAttention(scale=float(np.float32(np.log(2))), smooth_k=False)
    q, k, v = (np.zeros((1, 1, n, 8), np.float16) for n in (1, 4097, 4097))
    q[..., 0], k[0, 0, 0, 0], v[0, 0, 1:, :] = 1, 26, 1
    found = qattention(library, op, q, k, v).astype(np.float64)
    np.testing.assert_allclose(found, 2.0**-14, rtol=1e-2)
    check(op, [q, k, v], found.astype(np.float16))


@pytest.mark.parametrize("dtype", list(TYPES))
def test_sums_over_many_keys(library: Library, dtype: str) -> None:
    """Equal weights of many values, and then of an eighth as many eight times as large and negative: their sum is 0, near which no rounding
    of the result hides what was cut off. A key whose value is 0 has the greatest weight, so that the others' have all bits there are."""
    keys = 1 + 9 * 1024
    op = QAttention(scale=float(np.float32(np.log(2))), smooth_k=False)
    q, k = (np.zeros((1, 1, n, 64), TYPES[dtype]) for n in (1, keys))
    q[..., 0], k[0, 0, 0, 0] = 1, 0.3
    few = np.random.default_rng(7).uniform(1, 2, (1, 1, 1024, 64)).astype(TYPES[dtype]).astype(np.float64)
    v = np.concatenate([np.zeros((1, 1, 1, 64)), *[few] * 8, -8 * few], axis=2).astype(TYPES[dtype])
    off = np.abs(qattention(library, op, q, k, v).astype(np.float64)).max() / np.abs(v.astype(np.float64)).max()
    assert off <= sums_off(keys)
    if dtype == "fp16":  # products of bfloat16 are short: hardly anything is cut off
        assert off > 8 * sums_off(0)


def test_smoothing_is_what_keeps_keys_with_an_offset_apart(library: Library) -> None:
    """Keys 100 away from 0, a thousand times their spread: without their mean taken away all have the same few codes."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 1, n, 64)).astype(np.float16) for n in (16, 150, 150))
    k = (k + np.float16(100)).astype(np.float16)
    q64, k64, v64 = (a.astype(np.float64) for a in (q, k, v))
    scores = q64 @ k64.swapaxes(-1, -2) / 8
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ v64

    def error(smooth_k: bool) -> float:
        found = qattention(library, QAttention(scale=0.125, smooth_k=smooth_k), q, k, v).astype(np.float64)
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    assert error(True) < 0.02
    assert error(False) > 0.2


def test_hidden_keys_are_as_if_they_were_not_there(library: Library) -> None:
    """Also whole steps and tiles of them in front, whose weights are undone when the first key is seen."""
    op, bare = QAttention(scale=0.125, smooth_k=False, mask=True), QAttention(scale=0.125, smooth_k=False)
    q, k, v = arrays(bare, np.random.default_rng(3), (2, 1, 20, 200, 64), TYPES["fp16"], exact=True)
    seen = np.zeros((2, 1, 1, 200), bool)
    seen[..., 130:190] = True
    mask = np.where(seen, 0, -np.inf).astype(np.float16)
    found = qattention(library, op, q, k, v, mask)
    check(bare, [q, k[:, :, 130:190], v[:, :, 130:190]], found)
    mask[1] = -np.inf
    check(op, [q, k, v, mask], qattention(library, op, q, k, v, mask))


def test_tensors_that_lie_between_others(library: Library) -> None:
    """q, k and v of one product [B, tokens, 3, H, D], y among other numbers: nothing is transposed, nothing else is written."""
    op = QAttention(scale=0.125, q_by_token=True, k_by_token=True, v_by_token=True)
    packed = (np.random.default_rng(4).integers(-128, 129, (2, 70, 3, 2, 72)) / 32).astype(np.float16)
    around = np.full((2, 3, 71, 80), 7, np.float16)
    inputs = [packed[:, :, i] for i in range(3)]
    qattention(library, op, *inputs, y=around[:, :2, :70, :72])
    check(op, inputs, around[:, :2, :70, :72])
    around[:, :2, :70, :72] = 7
    assert (around == 7).all()


def test_nothing_to_do(library: Library) -> None:
    op = QAttention(scale=0.125)
    q, k, v = arrays(op, np.random.default_rng(5), (1, 2, 4, 8, 64), TYPES["fp16"])
    assert qattention(library, op, q[:, :, :0], k, v).shape == (1, 2, 0, 64)
    assert qattention(library, op, q[:0], k[:0], v[:0]).shape == (0, 2, 4, 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"struct_bytes": 8}, "a problem of 8 bytes; wanted"),
        ({"head_dim": 136}, "head_dim 136; wanted a multiple of 8 up to 128"),
        ({"head_dim": 12}, "head_dim 12; wanted a multiple of 8 up to 128"),
        ({"batch": -1}, "batch -1, heads 2; wanted at most 65535 of each, and a head"),
        ({"heads": 0}, "batch 1, heads 0; wanted"),
        ({"keys": 0}, "4 queries, 0 keys; wanted at most 2.30 of each, and a key"),
        ({"queries": 1 << 31}, "2147483648 queries, 8 keys; wanted"),
        ({"type": 0}, "type 0; wanted fp16 or bf16"),
        ({"smooth_k": 2}, "smooth_k 2; wanted 0 or 1"),
        ({"mask": -1}, "mask -1; wanted 0 or 1"),
        ({"scale": float("nan")}, "scale nan; wanted a number from 1e-20 to 1e20"),
        ({"scale": 0.0}, "scale 0; wanted"),
        ({"v_strides": (512, 68, 512)}, "v has 68 elements between tokens; wanted a multiple of 8"),
        ({"y_strides": (512, 64, 1)}, "y has 1 elements between heads; wanted a multiple of 8"),
    ],
)
def test_problems_that_there_are_not(library: Library, change: dict[str, Any], said: str) -> None:
    problem = a_problem()
    for name, value in change.items():
        setattr(problem, name, (ctypes.c_int64 * 3)(*value) if isinstance(value, tuple) else value)
    size = ctypes.c_size_t()
    with pytest.raises(KernelError, match=f"{said}.*status 1"):
        library.call("vditc_qattention_workspace", ctypes.byref(problem), ctypes.byref(size))
    with pytest.raises(KernelError, match=said):
        library.call("vditc_qattention_launch", ctypes.byref(problem), ctypes.byref(QAttentionTensors()), None, ctypes.c_size_t(0), None)


def test_a_stride_of_what_there_is_one_of_is_free(library: Library) -> None:
    problem = a_problem()
    problem.batch, problem.heads = 1, 1
    for name in "qkvy":
        setattr(problem, f"{name}_strides", (ctypes.c_int64 * 3)(3, 64, 5))
    library.call("vditc_qattention_workspace", ctypes.byref(problem), ctypes.byref(ctypes.c_size_t()))


@pytest.mark.parametrize("name", ["q", "k", "v", "mask", "y", "workspace"])
def test_pointers_that_are_none(library: Library, name: str) -> None:
    problem, size = a_problem(mask=1), ctypes.c_size_t()
    library.call("vditc_qattention_workspace", ctypes.byref(problem), ctypes.byref(size))
    memory = np.zeros(size.value + 16, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 16
    for pointer, said in ((None, f"{name} is null"), (address + 1, f"{name} is not aligned to {2 if name == 'mask' else 16} bytes")):
        pointers = dict.fromkeys(("q", "k", "v", "mask", "y", "workspace"), address) | {name: pointer}
        workspace = pointers.pop("workspace")
        tensors = QAttentionTensors(*pointers.values())
        with pytest.raises(KernelError, match=said):
            library.call("vditc_qattention_launch", ctypes.byref(problem), ctypes.byref(tensors), ctypes.c_void_p(workspace), size, None)


def test_a_workspace_that_is_too_small(library: Library) -> None:
    problem, size = a_problem(), ctypes.c_size_t()
    library.call("vditc_qattention_workspace", ctypes.byref(problem), ctypes.byref(size))
    memory = np.zeros(64, np.uint8)
    tensors = QAttentionTensors(*[memory.ctypes.data + -memory.ctypes.data % 16] * 5)
    with pytest.raises(KernelError, match=f"a workspace of {size.value - 1} bytes; wanted {size.value} .status 3"):
        library.call("vditc_qattention_launch", ctypes.byref(problem), ctypes.byref(tensors), None, ctypes.c_size_t(size.value - 1), None)


def a_problem(mask: int = 0) -> QAttentionProblem:
    """Of 1 x 2 heads, 4 queries and 8 keys of 64 channels."""
    op = QAttention(scale=0.125)
    q, k, v = arrays(op, np.random.default_rng(6), (1, 2, 4, 8, 64), TYPES["fp16"])
    made = problem_of(op, q, k, v, heads_first(q, False))
    made.mask = mask
    return made
