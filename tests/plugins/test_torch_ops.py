"""The operators of torch, on the CPU by the emulated library: right, traceable, and they refuse what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tolerances
import torch
from torch import Tensor

from vditc.plugins.library import KernelError
from vditc.plugins.packing import code_range, pack, pack_tokens
from vditc.plugins.qattention import reference as attention
from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.qlinear.reference import qlinear as qlinear_oracle
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.plugins.quantize_token.reference import quantize_token as quantize_oracle
from vditc.plugins.torch_ops import library_of, qattention, qlinear, quantize_token, use_library

GUIDE = Path(__file__).parents[2] / "docs" / "plugins" / "torch.md"


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def same(found: Tensor, wanted: np.ndarray[Any, Any]) -> None:
    assert torch.equal(found, tensor(wanted))


def layer(bits: int = 4, n: int = 48, k: int = 64) -> dict[str, Any]:
    """A layer's tensors for qlinear."""
    random = np.random.default_rng(bits)
    low, high = code_range(bits)
    weight = pack(random.integers(low, high + 1, (n, k), dtype=np.int8), bits)
    return {"weight": tensor(weight), "weight_scale": tensor(random.random(n).astype(np.float32)), "bits": bits}


def tokens(k: int = 64) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {"x": tensor(random.integers(-127, 128, (2, 3, k), dtype=np.int8)), "scale": tensor(random.random((2, 3, 1)).astype(np.float32))}


@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32"])
def test_qlinear_is_the_oracle(kind: str) -> None:
    """All that is exact at once, a gate of each sample among it."""
    op = QLinear(n=48, k=64, bits=4, activation_bits=4, packed=True, rank=2, bias=True, gated=True, output=kind)
    random = np.random.default_rng(1)
    out = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}[kind]
    floats = {"left": (2, 3, 2), "right": (2, 48), "b": (48,), "gate": (2, 1, 48), "residual": (2, 3, 48)}
    given: dict[str, Any] = {name: random.standard_normal(shape).astype(np.float32) for name, shape in floats.items()}
    given |= {name: given[name].astype(out) for name in ("gate", "residual")}
    given |= {"x": pack_tokens(random.integers(-8, 8, (2, 3, 64), dtype=np.int8)), "scale": random.random((2, 3, 1)).astype(np.float32)}
    given |= {"weight": pack(random.integers(-8, 8, (48, 64), dtype=np.int8), 4), "weight_scale": random.random(48).astype(np.float32)}
    ours: dict[str, Any] = {("bias" if name == "b" else name): tensor(array) for name, array in given.items()}
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    wanted = qlinear_oracle(op, *(given[name] for name in op.inputs))
    for tactic in ("any", "unpack-128", "int4"):
        same(qlinear(**ours, bits=4, activation_bits=4, packed=True, dtype=dtype, tactic=tactic), wanted)


def test_quantize_token_is_the_oracle() -> None:
    op = QuantizeToken(gated=True, gain=True, shift=True, center=True, balance=True, clip=True, total=True, shares=2)
    random = np.random.default_rng(2)
    shapes = {
        "x": (2, 3, 40),
        "gain": (2, 1, 40),
        "shift": (1, 1, 40),
        "gate": (3, 40),
        "residual": (2, 3, 40),
        "alpha": (2, 40),
        "clip": (1,),
    }
    given: dict[str, Any] = {name: random.standard_normal(shapes.get(name, (40,))).astype(np.float32) for name in op.inputs}
    given |= {name: given[name].astype(np.float16) for name in ("x", "gate", "residual")} | {"clip": np.asarray([0.8], np.float32)}
    ours: dict[str, Any] = {name: tensor(array) for name, array in given.items()}
    found, wanted = quantize_token(**ours, total=True), quantize_oracle(op, *(given[name] for name in op.inputs))
    assert found.total is not None and found.sum is not None
    for name in ("codes", "scale", "total", "sum"):
        same(getattr(found, name), wanted[name])
    assert len(found.shares) == 2
    for r in range(2):
        torch.testing.assert_close(found.shares[r], tensor(wanted[f"share{r}"]), rtol=0, atol=40 * 2 * tolerances.SCALE_OFF)


def test_a_given_scale_is_the_tokens_scale() -> None:
    x, given = torch.randn(4, 32), torch.tensor([0.02])
    found = quantize_token(x, given=given, bits=4, packed=True)
    assert found.scale is given and found.codes.shape == (4, 16)
    same(found.codes, quantize_oracle(QuantizeToken(bits=4, scaled="given", packed=True), x.numpy(), given.numpy())["codes"])


def test_attention_is_the_oracle_and_lies_tokens_first() -> None:
    random = np.random.default_rng(3)
    q, k, v = (random.standard_normal((1, 2, n, 64)).astype(np.float16) for n in (20, 33, 33))
    mask = np.where(random.random((1, 1, 1, 33)) < 0.5, -1e4, 0).astype(np.float16)
    op = QAttention(scale=0.125, mask=True)
    found = qattention(*map(tensor, (q, k, v, mask)))
    off = np.abs(found.numpy().astype(float) - attention.qattention(op, q, k, v, mask).astype(float))
    assert (off <= attention.tolerance(op, q, k, v, mask)).all()
    assert found.transpose(1, 2).is_contiguous()
    # Strided as a reshaped projection is, and at an address that no kernel takes.
    wide = torch.zeros(1, 20, 2 * 64 + 8, dtype=torch.float16)
    wide[..., 1 : 2 * 64 + 1] = tensor(q).transpose(1, 2).flatten(2)
    other = torch.unflatten(wide[..., 1 : 2 * 64 + 1], -1, (2, 64)).transpose(1, 2)
    assert torch.equal(qattention(other, *map(tensor, (k, v, mask))), found)


def test_nothing_in_nothing_out() -> None:
    codes = quantize_token(torch.zeros(0, 64))
    assert qlinear(codes.codes, codes.scale, **layer()).shape == (0, 48)
    empty = torch.zeros(1, 2, 0, 64, dtype=torch.float16)
    assert qattention(empty, empty, empty).shape == empty.shape


def test_tensors_anywhere_in_memory() -> None:
    """Views that are not contiguous, or begin at an odd address, give the same numbers."""
    made = tokens()
    whole = torch.zeros(2 * 3 * 64 + 1, dtype=torch.int8)
    whole[1:] = made["x"].flatten()
    shifted = whole[1:].reshape(2, 3, 64)
    wide = torch.stack([made["scale"], made["scale"]], -1)[..., 0]
    assert shifted.data_ptr() % 16 and not wide.is_contiguous()
    assert torch.equal(qlinear(shifted, wide, **layer()), qlinear(**made, **layer()))


LAYER = layer()


def call_all(x: Tensor) -> Tensor:
    """Every operator, as a model calls them."""
    made = quantize_token(x, norm="layer", gain=torch.ones(64), total=True)
    y = qlinear(made.codes, made.scale, **LAYER, left=made.total, right=torch.ones(1, 48), activation="gelu_tanh")
    q = torch.unflatten(y, -1, (2, 24)).transpose(1, 2)
    return qattention(q, q, q).transpose(1, 2).flatten(2)


def test_torch_compile_takes_them_whole() -> None:
    """No break of the graph, sizes that change, the same numbers."""
    compiled = torch.compile(call_all, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        x = torch.randn(2, rows, 64, dtype=torch.bfloat16)
        found = compiled(x)
        assert found.shape == (2, rows, 48) and torch.equal(found, call_all(x))


def test_fake_tensors_have_the_real_ones_shapes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = call_all(torch.randn(2, 4, 64, dtype=torch.bfloat16))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = call_all(mode.from_tensor(torch.randn(2, 4, 64, dtype=torch.bfloat16)))
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_opcheck() -> None:
    none, x = [None] * 11, torch.randn(2, 3, 64, dtype=torch.float16)
    torch.library.opcheck(torch.ops.vditc.quantize_token.default, (x, *none, 8, False, "none", "rms", 1e-6, 0, True))
    torch.library.opcheck(
        torch.ops.vditc.quantize_token.default, (x, x[0], x, *none[:8], torch.ones(2, 64), 4, True, "none", "none", 0.0, 0, False)
    )
    made, own = tokens(), layer()
    given = (made["x"], made["scale"], own["weight"], own["weight_scale"], *[None] * 7, 4, False, 8, False, "gelu", torch.float16, "any")
    torch.library.opcheck(torch.ops.vditc.qlinear.default, given)
    q = torch.randn(1, 2, 9, 64, dtype=torch.bfloat16)
    torch.library.opcheck(torch.ops.vditc.qattention.default, (q, q, q, None, 0.125, True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(2, 3, 64)}, "x is torch.float32[2, 3, 64] on cpu; wanted torch.int8 on cpu"),
        ({"x": torch.zeros(2, 3, 32, dtype=torch.int8)}, "weight is torch.int8[2048] on cpu; wanted torch.int8[1024]"),
        ({"scale": torch.ones(2, 3)}, "scale is torch.float32[2, 3] on cpu; wanted torch.float32[2, 3, 1]"),
        ({"scale": torch.ones(2, 3, 1, dtype=torch.float64)}, "scale is torch.float64"),
        ({"weight_scale": torch.ones(47)}, None),  # still two blocks of outputs: another layer, not an error
        ({"weight_scale": torch.ones(65)}, "weight is torch.int8[2048] on cpu; wanted torch.int8[3072]"),
        ({"left": torch.ones(2, 3, 1)}, "one of left and right"),
        ({"left": torch.ones(2, 3, 5), "right": torch.ones(5, 48)}, "rank = 5; wanted 0 to 4"),
        ({"left": torch.ones(2, 3, 1), "right": torch.ones(1, 47)}, "right is torch.float32[1, 47]"),
        ({"down": torch.ones(2, 3, 8).bfloat16(), "up": torch.ones(8, 48).bfloat16()}, "low_rank = 8; wanted one of 0, 16"),
        ({"bias": torch.ones(1)}, "bias is torch.float32[1] on cpu; wanted torch.float32[48]"),
        ({"gate": torch.ones(2, 3, 48)}, "one of gate and residual"),
        ({"gate": torch.ones(2, 3, 48), "residual": torch.ones(2, 3, 48)}, "gate is torch.float32[2, 3, 48] on cpu; wanted torch.bfloat16"),
        ({"gate": torch.ones(4, 48).bfloat16(), "residual": torch.ones(48).bfloat16()}, "gate is [4, 48]; wanted a shape that broadcasts"),
        ({"dtype": torch.float64}, "dtype torch.float64; wanted one of"),
        ({"activation": "relu"}, "activation 'relu'; wanted one of none, gelu, gelu_tanh"),
        ({"bits": 5}, "bits 5; wanted one of 8, 4, 3"),
        ({"activation_bits": 7}, "activation_bits = 7; wanted one of 8, 6, 4, 3"),
        ({"tactic": "best"}, "tactic 'best'; wanted any, unpack-128"),
        ({"tactic": "int4"}, "int4: weights of 4 and activations of 8 bits"),
    ],
)
def test_qlinear_refuses(change: dict[str, Any], said: str | None) -> None:
    given = {**tokens(), **layer(), **change}
    if said is None:
        assert qlinear(**given).shape[-1] == 47
        return
    with pytest.raises(KernelError, match=re.escape(said)):
        qlinear(**given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(4, 64, dtype=torch.float64)}, "x's type torch.float64"),
        ({"norm": "batch"}, "norm 'batch'; wanted one of none, layer, rms"),
        ({"weight": torch.ones(64)}, "weight 1, bias 0 without a norm"),
        ({"norm": "rms", "epsilon": -1.0}, "epsilon -1 of a norm"),
        ({"balance": torch.ones(63)}, "balance is torch.float32[63]"),
        ({"gain": torch.ones(3, 64)}, "gain is [3, 64]"),
        ({"given": torch.ones(2)}, "given [2]; wanted one element"),
        ({"given": torch.ones(1), "clip": torch.ones(1)}, "a clip of a given scale"),
        ({"alpha": torch.ones(5, 64)}, "shares 5; wanted one of"),
        ({"gate": torch.ones(64)}, "one of gate and residual"),
        ({"packed": True}, "packed codes of 8 bits"),
        ({"rotation": 128}, "rotation 128"),
    ],
)
def test_quantize_token_refuses(change: dict[str, Any], said: str) -> None:
    with pytest.raises(KernelError, match=re.escape(said)):
        quantize_token(**{"x": torch.zeros(4, 64), **change})


def test_attention_refuses() -> None:
    q = torch.zeros(1, 2, 8, 64, dtype=torch.float16)
    for given, said in (
        ((q[0], q, q), "wanted [batch, heads, tokens, channels]"),
        ((q.float(), q, q), "q's type torch.float32"),
        ((q, q, q[:, :, :7]), "v is torch.float16[1, 2, 7, 64]"),
        ((q, q.bfloat16(), q), "k is torch.bfloat16"),
        ((q, q, q, torch.zeros(1, 1, 8, 8).half()), "mask is torch.float16[1, 1, 8, 8]"),
        ((q[..., :20], q[..., :20], q[..., :20]), "head_dim"),
    ):
        with pytest.raises(KernelError, match=re.escape(said)):
            qattention(*given)


def test_other_devices_and_libraries_are_refused(tmp_path: Path) -> None:
    from vditc.errors import InputError

    with pytest.raises(KernelError, match="tensors on meta; wanted cuda"):
        library_of(torch.device("meta"))
    with pytest.raises(InputError, match=r"wanted libvditc_plugins\.so"):
        use_library(tmp_path / "libvditc_plugins.so")


def test_the_guides_examples_run() -> None:
    """Every Python block of docs/plugins/torch.md, one after another, in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert names["y"].shape == (2, 6, 96)
