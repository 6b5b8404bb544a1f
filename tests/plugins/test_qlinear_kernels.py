"""QLinear's kernels, their own sources on the CPU: sums are exact, what follows has the oracle's bits."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_layers import FLOATS, UNPACKED, Layer, accumulated, computed, exact, exact_sums, layer, library, placed

from vditc.plugins.library import KernelError
from vditc.plugins.packing import pack, unpack
from vditc.plugins.qlinear import kernels, reference
from vditc.plugins.qlinear.kernels import Problem, Tactic, aligned
from vditc.plugins.qlinear.op import QLinear

# bits, unsigned
WEIGHTS = ((8, False), (4, False), (4, True), (3, False))
# activation_bits, packed
CODES = ((8, False), (4, False), (4, True))
# One row; tiles of 128 and 64 with a tail on every side and more pieces of k than the ring has; nothing aligned; next to nothing; more
# tiles of rows than blocks take at a time (eight), in more than one column.
SHAPES = ((1, 128, 64), (130, 97, 672), (70, 33, 100), (3, 5, 3), (1100, 140, 32))


def takes(op: QLinear) -> list[Tactic]:
    """Tactics that compute the operator's sums, by the tables of the design and not by the library."""
    if op.group:
        return list(UNPACKED)
    least = {8: 128, 4: 15 if op.unsigned else 8, 3: 4}[op.bits] * 2 ** (op.activation_bits - 1)
    nibbles = op.bits == 4 and op.activation_bits <= 4
    return [*UNPACKED, *[Tactic.INT4] * nibbles, *[Tactic.CARRIER] * (least * op.k <= 2**24)]


@pytest.mark.parametrize(("bits", "unsigned"), WEIGHTS)
@pytest.mark.parametrize(("activation_bits", "packed"), CODES)
def test_sums_are_exact(bits: int, unsigned: bool, activation_bits: int, packed: bool) -> None:
    for m, n, k in SHAPES:
        op = QLinear(
            n=n,
            k=-(-k // 32) * 32 if packed else k,
            bits=bits,
            unsigned=unsigned,
            activation_bits=activation_bits,
            packed=packed,
            output="fp32",
        )
        made = layer(op, m, seed=m)
        wanted = exact_sums(made)
        for tactic in takes(op):
            np.testing.assert_array_equal(accumulated(made, tactic), wanted, err_msg=f"{tactic.name} {m} {n} {k}")


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, Tactic]:
    """An operator without GELU and low rank, and a tactic for it."""
    group, packed = draw(st.sampled_from((0, 0, 128))), draw(st.booleans())
    bits = draw(st.sampled_from((8, 4, 3)))
    m, output = draw(st.integers(1, 140)), draw(st.sampled_from(list(FLOATS)))
    op = QLinear(
        n=draw(st.integers(1, 140)),
        k=128 * draw(st.integers(1, 2)) if group else 32 * draw(st.integers(1, 5)) if packed else draw(st.integers(1, 200)),
        bits=bits,
        unsigned=bits == 4 and draw(st.booleans()),
        activation_bits=draw(st.sampled_from((4, 3) if packed else (8, 6, 4, 3))),
        packed=packed,
        group=group,
        rank=draw(st.integers(0, 4)),
        bias=draw(st.booleans()),
        gated=draw(st.booleans()),
        output=output,
    )
    rows = st.sampled_from(((1, 1), (1, m), (7, 3), (1, 2)))
    made = layer(op, m, draw(st.integers(0, 2**32 - 1)), scale_per_row=draw(st.booleans()), gate_rows=draw(rows), residual_rows=draw(rows))
    return made, draw(st.sampled_from(takes(op)))


@settings(max_examples=60, deadline=None)
@given(layers())
def test_every_layer_has_the_oracles_bits(case: tuple[Layer, Tactic]) -> None:
    made, tactic = case
    found, wanted = computed(made, tactic), exact(made)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8))


@pytest.mark.parametrize("output", FLOATS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_is_near_the_oracles(activation: str, output: str) -> None:
    made = layer(QLinear(n=72, k=64, bits=4, bias=True, activation=activation, gated=True, output=output), 70, 1, residual_rows=(1, 70))
    found, wanted = computed(made, Tactic.UNPACK_64).astype(np.float64), exact(made).astype(np.float64)
    assert np.abs(found - wanted).max() <= tolerances.KERNEL_GELU[output] * np.abs(wanted).max()
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[activation]
    if output == "fp32":  # the two functions differ by more than that
        assert np.abs(found - reference.qlinear(dataclasses.replace(made.op, activation=other), *made.inputs())).max() > 1e-5


@pytest.mark.parametrize("tactic", [Tactic.UNPACK_128, Tactic.UNPACK_64, Tactic.CARRIER, Tactic.INT4])
@pytest.mark.parametrize(("low_rank", "output"), [(16, "fp32"), (32, "fp16"), (48, "bf16"), (64, "fp32")])
def test_the_low_rank_branch_is_near_the_oracles(low_rank: int, output: str, tactic: Tactic) -> None:
    op = QLinear(n=75, k=64, bits=4, activation_bits=4, packed=True, low_rank=low_rank, rank=1, bias=True, output=output)
    made = layer(op, 131, 2)
    found, wanted = computed(made, tactic).astype(np.float64), exact(made).astype(np.float64)
    magnitude = reference.branch_magnitude(made.tensors["down"], made.tensors["up"])
    one_bit = tolerances.ONE_ROUNDING[output] * np.abs(wanted)
    assert (np.abs(found - wanted) <= reference.BRANCH_OFF * magnitude + one_bit).all()
    np.testing.assert_array_equal(accumulated(made, tactic), exact_sums(made))  # which has no branch


def test_groups_with_a_low_rank_branch() -> None:
    op = QLinear(n=100, k=384, bits=3, group=128, low_rank=32, output="fp32")
    made = layer(op, 66, 3)
    magnitude = reference.branch_magnitude(made.tensors["down"], made.tensors["up"])
    for tactic in UNPACKED:
        assert (np.abs(computed(made, tactic) - exact(made)) <= (reference.BRANCH_OFF + 2**-23) * magnitude + 1e-6).all()


@pytest.mark.parametrize(("bits", "unsigned", "weight"), [(8, False, -128), (4, False, -8), (4, True, 15), (3, False, -4)])
@pytest.mark.parametrize(("activation_bits", "packed"), CODES)
def test_the_greatest_sums_of_a_wide_layer(bits: int, unsigned: bool, weight: int, activation_bits: int, packed: bool) -> None:
    k = 13824
    op = QLinear(n=9, k=k, bits=bits, unsigned=unsigned, activation_bits=activation_bits, packed=packed, output="fp32")
    made = layer(op, 2, 4)
    made.tensors["x"][...] = -120 if packed else -(2 ** (activation_bits - 1))  # 0x88: two codes -8
    made.tensors["weight"] = placed(pack(np.full((9, k), weight, np.int8), bits, unsigned=unsigned))
    for tactic in takes(op):
        assert (accumulated(made, tactic) == weight * -(2 ** (activation_bits - 1)) * k).all(), tactic.name


def test_the_greatest_sums_of_a_group() -> None:
    for bits, weight in ((8, -128), (4, -8), (3, -4)):
        made = layer(QLinear(n=9, k=256, bits=bits, group=128, output="fp32"), 2, 5)
        for x in (-128, 127):
            made.tensors["x"][...] = x
            made.tensors["weight"] = placed(pack(np.full((9, 256), weight, np.int8), bits))
            for tactic in UNPACKED:
                np.testing.assert_array_equal(computed(made, tactic), exact(made))


@pytest.mark.parametrize(("bits", "unsigned"), WEIGHTS)
def test_expanded_weights(bits: int, unsigned: bool) -> None:
    for n, k in ((128, 160), (45, 131), (1, 16), (33, 672)):
        made = layer(QLinear(n=n, k=k, bits=bits, unsigned=unsigned), 1, n)
        room = aligned((n * k + 16,), np.int8)
        room[...] = 99
        kernels.expand(library(), made.problem, made.tensors["weight"], room)
        np.testing.assert_array_equal(room[:-16].reshape(n, k), unpack(made.tensors["weight"], n, k, bits, unsigned=unsigned))
        assert (room[-16:] == 99).all()
    with pytest.raises(KernelError, match="weight is null"):
        kernels.expand(library(), made.problem, 0, room)
    with pytest.raises(KernelError, match="out is null"):
        kernels.expand(library(), made.problem, made.tensors["weight"], 0)


def test_no_rows_are_nothing_to_do() -> None:
    problem = Problem(m=0, n=64, k=64, bits=4)
    assert kernels.workspace_bytes(library(), problem, Tactic.ANY, 80) == 0
    for tactic in (Tactic.ANY, Tactic.UNPACK_64):
        kernels.launch(library(), problem, {}, tactic)
        kernels.accumulators(library(), problem, {}, 0, tactic)


def test_only_the_outputs_are_written() -> None:
    """Rows of y end where they say: what stands around y stays."""
    made = layer(QLinear(n=35, k=96, bits=4, output="fp16"), 67, 6)
    for tactic in takes(made.op):
        room = aligned((8 + 67 * 35 + 8,), np.float16)
        room[...] = 7
        kernels.launch(library(), made.problem, {**made.tensors, "y": room[8:-8]}, tactic)
        np.testing.assert_array_equal(room[8:-8].reshape(67, 35), exact(made))
        assert (room[:8] == 7).all() and (room[-8:] == 7).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 5}, "bits = 5; wanted one of 8, 4, 3"),
        ({"unsigned": True, "bits": 3}, "unsigned_weights = 1 with bits = 3; wanted bits = 4"),
        ({"activation_bits": 7}, "activation_bits = 7; wanted one of 8, 6, 4, 3"),
        ({"packed": True}, "packed = 1 with activation_bits = 8; wanted 4 or 3"),
        ({"packed": True, "activation_bits": 4, "k": 48}, "packed = 1 with k = 48; wanted a multiple of 32"),
        ({"layout": 2}, "layout = 2; wanted one of 1"),
        ({"group": 64}, "group = 64; wanted one of 0, 128"),
        ({"group": 128, "k": 192}, "group = 128 with k = 192; wanted a multiple of it"),
        ({"rank": 5}, "rank = 5; wanted 0 to 4"),
        ({"low_rank": 8}, "low_rank = 8; wanted one of 0, 16, 32, 48, 64"),
        ({"n": 0}, "n = 0; wanted 1 to"),
        ({"k": 131072}, "k = 131072; wanted 1 to 131071"),
        ({"m": -1}, "m = -1; wanted 0 to"),
        ({"gated": True, "gate_rows": (0, 1)}, "gate_rows = {0, 1}; wanted positive numbers"),
        ({"gated": True, "residual_rows": (1, 0)}, "residual_rows = {1, 0}; wanted positive numbers"),
    ],
)
def test_a_problem_that_there_is_not(change: dict[str, Any], said: str) -> None:
    problem = Problem(**{"m": 4, "n": 64, "k": 64, "bits": 4, **change})
    for call in (
        lambda: kernels.launch(library(), problem, {}),
        lambda: kernels.tactics(library(), problem, 80),
        lambda: kernels.workspace_bytes(library(), problem, Tactic.ANY, 80),
    ):
        with pytest.raises(KernelError, match=said.replace("{", r"\{").replace("}", r"\}")):
            call()


def test_tensors_that_are_not_there() -> None:
    op = QLinear(n=40, k=50, bits=4, rank=2, low_rank=16, bias=True, gated=True, output="fp16")
    made = layer(op, 3, 7)
    tensors = {**made.tensors, "y": aligned((3, 40), np.float16)}
    room = aligned((kernels.workspace_bytes(library(), made.problem, Tactic.ANY, 80),), np.uint8)
    assert room.nbytes == 3 * 64  # rows of 50 bytes are not aligned
    for name in kernels.TENSORS:
        with pytest.raises(KernelError, match=f"{name} is null; wanted a tensor, as the problem has it"):
            kernels.launch(library(), made.problem, {**tensors, name: 0}, workspace=room)
        unit = 4 if name in ("scale", "left") else 16  # read one by one
        with pytest.raises(KernelError, match=f"{name} = 0x.*; wanted an address that is a multiple of {unit}"):
            kernels.launch(library(), made.problem, {**tensors, name: tensors[name].ctypes.data + unit // 2}, workspace=room)
    with pytest.raises(KernelError, match=r"unpack-64: a workspace of 191 bytes; wanted 192 \(status 3\)"):
        kernels.launch(library(), made.problem, dict(tensors), workspace=room[:-1])
    with pytest.raises(KernelError, match="workspace is null"):
        kernels.launch(library(), made.problem, dict(tensors), workspace=0, room=192)
    with pytest.raises(KernelError, match="accumulators is null"):
        kernels.accumulators(library(), made.problem, dict(tensors), 0, workspace=room)
    with pytest.raises(KernelError, match="group = 128; wanted 0"):
        kernels.accumulators(library(), Problem(m=1, n=1, k=128, bits=4, group=128), {}, 0)


def test_tactics_that_do_not_compute_it() -> None:
    for problem, tactic, said in (
        (Problem(m=1, n=8, k=64, bits=4), Tactic.INT4, "int4: weights of 4 and activations of 8 bits; wanted 4 and at most 4"),
        (Problem(m=1, n=8, k=16385, bits=4), Tactic.CARRIER, "carrier: k = 16385; .* exact up to k = 16384"),
        (Problem(m=1, n=8, k=13824, bits=4, unsigned=True), Tactic.CARRIER, "exact up to k = 8738"),
        (Problem(m=1, n=8, k=1536, bits=8), Tactic.CARRIER, "exact up to k = 1024"),
        (Problem(m=1, n=8, k=128, bits=4, group=128), Tactic.CARRIER, "carrier: group = 128; wanted 0"),
        (Problem(m=1, n=8, k=64, bits=4), Tactic.EXPAND_SM80, "expand-sm80: the library was built without it"),
    ):
        with pytest.raises(KernelError, match=said):
            kernels.launch(library(), problem, {}, tactic)
    with pytest.raises(KernelError, match="tactic 5; wanted one of vditc_qlinear_tactic"):
        kernels.launch(library(), Problem(m=1, n=8, k=64, bits=4), {}, 5)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"sm_75; wanted sm_80 or later \(status 2\)"):
        kernels.tactics(library(), Problem(m=1, n=8, k=64, bits=4), 75)


def test_more_outputs_than_a_grid_has_blocks() -> None:
    rows = 1 << 37
    assert kernels.tactics(library(), Problem(m=rows, n=128, k=64, bits=4), 80) == [Tactic.UNPACK_128]
    with pytest.raises(KernelError, match="unpack-64: m = 137438953472, n = 128: 2147483648 x 2 blocks; wanted at most 2147483647"):
        kernels.launch(library(), Problem(m=rows, n=128, k=64, bits=4), {}, Tactic.UNPACK_64)
    for call in (
        lambda problem: kernels.tactics(library(), problem, 80),
        lambda problem: kernels.workspace_bytes(library(), problem, Tactic.ANY, 80),
        lambda problem: kernels.launch(library(), problem, {}),
    ):
        with pytest.raises(KernelError, match=r"unpack-128: m = 137438953472, n = 5120: 1073741824 x 40 blocks.*status 2"):
            call(Problem(m=rows, n=5120, k=64, bits=4))


def test_the_callers_header_is_another() -> None:
    native = Problem(m=1, n=8, k=64, bits=4).native()
    native.struct_bytes -= 4
    with pytest.raises(KernelError, match=r"the caller was built with another vditc_plugins\.h"):
        library().call("vditc_qlinear_launch", ctypes.byref(native), None, 0, None, 0, None)
    with pytest.raises(KernelError, match="problem is null"):
        library().call("vditc_qlinear_launch", None, None, 0, None, 0, None)
    with pytest.raises(KernelError, match="tensors is null"):
        library().call("vditc_qlinear_launch", ctypes.byref(Problem(m=1, n=8, k=64, bits=4).native()), None, 0, None, 0, None)


def test_the_best_guess_stands_first() -> None:
    tall, few = Problem(m=32760, n=5120, k=5120, bits=4), Problem(m=64, n=5120, k=5120, bits=4)
    nibbles = dataclasses.replace(tall, activation_bits=4)
    for problem, sm, wanted in (
        (tall, 80, [Tactic.UNPACK_128, Tactic.UNPACK_64]),
        (few, 87, [Tactic.UNPACK_64, Tactic.UNPACK_128]),
        (dataclasses.replace(few, m=256), 80, [Tactic.UNPACK_64, Tactic.UNPACK_128]),
        (dataclasses.replace(few, m=256), 87, [Tactic.UNPACK_128, Tactic.UNPACK_64]),
        (nibbles, 89, [Tactic.INT4, Tactic.UNPACK_128, Tactic.UNPACK_64]),
        (nibbles, 90, [Tactic.UNPACK_128, Tactic.UNPACK_64]),
        (tall, 103, [Tactic.CARRIER, Tactic.UNPACK_128, Tactic.UNPACK_64]),
        (dataclasses.replace(tall, bits=8), 103, [Tactic.UNPACK_128, Tactic.UNPACK_64]),
        (dataclasses.replace(tall, group=128), 80, [Tactic.UNPACK_128, Tactic.UNPACK_64]),
    ):
        assert kernels.tactics(library(), problem, sm) == wanted


def test_names_of_tactics() -> None:
    name = library().native.vditc_qlinear_tactic_name
    name.restype = ctypes.c_char_p
    for tactic in Tactic:
        wanted = None if tactic is Tactic.ANY else tactic.name.lower().replace("_", "-").encode()
        assert name(int(tactic)) == wanted
