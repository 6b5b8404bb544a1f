"""QLinear at sizes of real layers: sums against torch's INT8 product, all that follows bit for bit, and the same bits from every tactic."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from torch import Tensor

from vditc.plugins import interface
from vditc.plugins.library import NO_KERNEL, KernelError, Library
from vditc.plugins.packing import LAYOUT, code_range, pack
from vditc.plugins.torch_ops import qlinear

# rows, outputs, inputs: of Wan 1.3B and 14B, CogVideoX, and some that fill no tile
SHAPES = [
    (4096, 1536, 1536),
    (1000, 8960, 1536),
    (777, 1536, 8960),
    (513, 5120, 5120),
    (300, 13824, 5120),
    (226, 3072, 12288),
    (1, 1536, 256),
    (130, 1000, 400),
]
# bits of weights, unsigned, bits of activations, two codes a byte
CODES = [
    (8, False, 8, False),
    (4, False, 8, False),
    (4, True, 8, False),
    (3, False, 6, False),
    (4, False, 4, False),
    (4, False, 4, True),
    (4, True, 4, True),
]


def random_codes(shape: tuple[int, ...], bits: int, unsigned: bool = False) -> Tensor:
    low, high = code_range(bits, unsigned=unsigned)
    return torch.randint(low, high + 1, shape, dtype=torch.int8, device="cuda")


def packed(codes: Tensor, bits: int, unsigned: bool) -> Tensor:
    return torch.from_numpy(pack(codes.cpu().numpy(), bits, unsigned=unsigned)).cuda()


def nibbles(codes: Tensor) -> Tensor:
    halves: Tensor = torch.unflatten(codes, -1, (-1, 2, 16)).view(torch.uint8)
    return ((halves[..., 0, :] & 15) | (halves[..., 1, :] << 4)).flatten(-2).view(torch.int8)


def sums(x: Tensor, w: Tensor) -> Tensor:
    """Exact, int64: by cuBLAS where it takes the sizes, else in float64, which is exact to 2^53."""
    if x.shape[0] > 16 and x.shape[1] % 8 == 0 and w.shape[0] % 8 == 0:
        return torch._int_mm(x, w.T).long()
    return (x.double() @ w.double().T).long()


def tactics_that_run(library: Library, call: Any) -> dict[str, Tensor]:
    """Name -> output of every tactic that takes the problem on this GPU."""
    made = {}
    for name in interface.tactics(library).values():
        try:
            made[name] = call(tactic=name)
        except KernelError as error:
            assert error.status == NO_KERNEL, error
    assert made, "no tactic"
    return made


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("codes", CODES, ids=lambda c: f"w{c[0]}{'u' * c[1]}a{c[2]}{'p' * c[3]}")
def test_every_tactic_is_exact(library: Library, shape: tuple[int, int, int], codes: tuple[int, bool, int, bool]) -> None:
    """float32 operations of torch are rounded one by one, as a kernel's are: the output has the same bits."""
    (m, n, k), (bits, unsigned, activation_bits, pairs) = shape, codes
    if pairs and k % 32:
        pytest.skip("two codes a byte take multiples of 32 inputs")
    x, w = random_codes((m, k), activation_bits), random_codes((n, k), bits, unsigned)
    scale, weight_scale, bias = torch.rand(m, 1, device="cuda"), torch.rand(n, device="cuda") / 100, torch.randn(n, device="cuda")
    left, right = torch.randn(m, 2, device="cuda"), torch.randn(2, n, device="cuda")
    gate, residual = torch.randn(n, device="cuda").half(), torch.randn(m, n, device="cuda").half()
    y = sums(x, w).float() * weight_scale * scale
    y = y + (left[:, :1] * right[0] + left[:, 1:] * right[1])
    wanted = (residual.float() + gate.float() * (y + bias)).half()
    call = functools.partial(
        qlinear, nibbles(x) if pairs else x, scale, packed(w, bits, unsigned), weight_scale, bits=bits, unsigned=unsigned
    )
    given = {
        "activation_bits": activation_bits,
        "packed": pairs,
        "left": left,
        "right": right,
        "bias": bias,
        "gate": gate,
        "residual": residual,
    }
    for name, found in tactics_that_run(library, functools.partial(call, **given, dtype=torch.float16)).items():
        different = int((found != wanted).sum())
        assert different == 0, f"{name}: {different} of {wanted.numel()} outputs differ"


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_has_the_same_bits_in_every_tactic(library: Library, activation: str) -> None:
    x, w = random_codes((600, 1536), 8), random_codes((1024, 1536), 8)
    scale, weight_scale = torch.rand(600, 1, device="cuda") / 100, torch.rand(1024, device="cuda") / 100
    call = functools.partial(qlinear, x, scale, packed(w, 8, False), weight_scale, bits=8, activation=activation, dtype=torch.float32)
    made = tactics_that_run(library, call)
    first = next(iter(made.values()))
    assert {name for name, y in made.items() if not torch.equal(y, first)} == set()
    wide = sums(x, w).double() * weight_scale.double() * scale.double()
    wanted = torch.nn.functional.gelu(wide, approximate="tanh" if activation == "gelu_tanh" else "none")
    assert (first - wanted).abs().max() <= tolerances.KERNEL_GELU["fp32"] * wanted.abs().max()


def test_groups_and_a_low_rank_branch(library: Library) -> None:
    m, n, k = 515, 640, 1536
    x, w = random_codes((m, k), 8), random_codes((n, k), 4)
    scale, group_scale = torch.rand(m, 1, device="cuda"), torch.rand(k // 128, n, device="cuda") / 100
    y = torch.zeros(m, n, device="cuda")
    for g in range(k // 128):
        part = slice(128 * g, 128 * g + 128)
        y = y + sums(x[:, part].contiguous(), w[:, part].contiguous()).float() * group_scale[g]
    given = (x, scale, packed(w, 4, False))
    for name, found in tactics_that_run(library, functools.partial(qlinear, *given, group_scale, bits=4, dtype=torch.float32)).items():
        assert torch.equal(found, y * scale), name
    down, up = torch.randn(m, 32, device="cuda").bfloat16(), torch.randn(32, n, device="cuda").bfloat16()
    weight_scale = torch.rand(n, device="cuda") / 100
    base = sums(x, w).float() * weight_scale * scale
    branch, most = down.double() @ up.double(), down.double().abs() @ up.double().abs()
    for name, found in tactics_that_run(
        library, functools.partial(qlinear, *given, weight_scale, bits=4, down=down, up=up, dtype=torch.bfloat16)
    ).items():
        wanted = base.double() + branch
        assert ((found - wanted).abs() <= tolerances.BRANCH_OFF * most + tolerances.ONE_ROUNDING["bf16"] * wanted.abs()).all(), name


def test_accumulators_at_the_ends_of_the_range(library: Library) -> None:
    """The greatest sums that there are, at the widest layer: by the C function, of every tactic."""
    m, n, k = 64, 256, 13824
    x, w = torch.full((m, k), 127, dtype=torch.int8, device="cuda"), torch.full((n, k), 127, dtype=torch.int8, device="cuda")
    x[::2], w[::3] = -128, -128
    problem = interface.filled(
        interface.QLinearProblem,
        {"n": n, "k": k, "m": m, "bits": 8, "activation_bits": 8, "layout": LAYOUT, "output": 1, "scale_per_row": 1},
    )
    weight = packed(w, 8, False)
    tensors = interface.filled(interface.QLinearTensors, {"x": x.data_ptr(), "weight": weight.data_ptr()})
    ran = 0
    for number, name in interface.tactics(library).items():
        found = torch.zeros(m, n, dtype=torch.int32, device="cuda")
        try:
            size = interface.workspace(library, problem, number, library.sm)
            scratch = torch.empty(size + 16, dtype=torch.uint8, device="cuda")
            arguments = (
                ctypes.c_int32(number),
                ctypes.c_void_p(found.data_ptr()),
                ctypes.c_void_p(scratch.data_ptr()),
                ctypes.c_size_t(size),
            )
            torch.cuda.synchronize()
            library.call("vditc_qlinear_accumulators", ctypes.byref(problem), ctypes.byref(tensors), *arguments, None)
        except KernelError as error:
            assert error.status == NO_KERNEL, error
            continue
        torch.cuda.synchronize()
        assert torch.equal(found.long(), sums(x, w)), name
        ran += 1
    assert ran


def test_a_cuda_graph_holds_the_launches(library: Library) -> None:
    """Captured once, it computes what is in its inputs when it is replayed; another stream than the default one."""
    x, w, scale = random_codes((512, 256), 8), random_codes((256, 256), 4), torch.rand(512, 1, device="cuda")
    call = functools.partial(qlinear, x, scale, packed(w, 4, False), torch.rand(256, device="cuda"), bits=4)
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    for _ in range(3):
        x.copy_(random_codes((512, 256), 8))
        y.zero_()
        graph.replay()
        assert torch.equal(y, call())


def test_bad_input_is_an_error_and_the_device_goes_on(library: Library) -> None:
    x, w, scale = random_codes((64, 64), 8), random_codes((64, 64), 4), torch.rand(64, 1, device="cuda")
    weight, weight_scale = packed(w, 4, False), torch.rand(64, device="cuda")
    good = qlinear(x, scale, weight, weight_scale, bits=4)
    good_ones: dict[str, Any] = {"x": x, "scale": scale, "weight": weight, "weight_scale": weight_scale, "bits": 4}
    changes: tuple[dict[str, Any], ...] = (
        {"weight": weight[:-1]},
        {"weight": weight.cpu()},
        {"scale": scale.double()},
        {"bits": 3},
        {"activation_bits": 5},
        {"tactic": "int4"},
        {"bias": torch.zeros(63, device="cuda")},
    )
    for change in changes:
        with pytest.raises(KernelError):
            qlinear(**{**good_ones, **change})
    problem = interface.filled(interface.QLinearProblem, {"n": 64, "k": 64, "m": 64, "bits": 4, "activation_bits": 8, "layout": LAYOUT})
    with pytest.raises(KernelError, match="null"):
        library.call(
            "vditc_qlinear_launch", ctypes.byref(problem), ctypes.byref(interface.QLinearTensors()), 0, None, ctypes.c_size_t(0), None
        )
    assert torch.equal(qlinear(x, scale, weight, weight_scale, bits=4), good)
    assert np.isfinite(good.float().cpu().numpy()).all()
