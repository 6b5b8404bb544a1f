"""Which layers behind attention have their input rotated by v: found by running models that are as they should be, and others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_checks as checks
import numpy as np
import pytest
import torch
from family_case import cases
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from vditc.calibrate.attention_outputs import AttentionOutput, attention_outputs, joined_statistics, paired
from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.row_sample import RowSample, row_keys
from vditc.numerics import Granularity, QType
from vditc.scheme import QuantSpec, Scheme
from vditc.torch_transform import OutputChange
from vditc.transform import OutputTransform, Transform

F32 = np.float32
W8A8 = Scheme(
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
)
K, HEADS = 24, 3


class Attention(nn.Module):
    """One stream, with something between attention and `out`."""

    between: Any

    def __init__(self, between: Callable[..., Any], values: int = K) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(K, n) for n in (K, K, values, K))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(self.between(x, attended.transpose(1, 2).flatten(2), v))  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(self, between: Callable[..., Any], **more: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(b, **more)}) for b in (plain, between, between))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(3):
            x = x + self.get_submodule(f"blocks.{i}.attn")(x)
        return x


def plain(_x: torch.Tensor, attended: torch.Tensor, _v: torch.Tensor) -> torch.Tensor:
    return attended


def found(model: nn.Module, kept: tuple[str, ...] = ()) -> tuple[list[AttentionOutput], dict[str, str]]:
    roles = {n: f"self_attn.{n.rpartition('.')[2]}" for n, m in model.named_modules() if isinstance(m, nn.Linear)}

    def run(feeds: Any, _step: int) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(feeds["x"])).numpy()

    class Denoiser:
        def __init__(self) -> None:
            self.model, self.device = model, torch.device("cpu")

        def __call__(self, feeds: Any, step: int) -> Any:
            return run(feeds, step)

    feeds = {"x": np.random.default_rng(0).standard_normal((2, 9, K)).astype(F32)}
    schemes = {layer: W8A8 for layer in roles if layer not in kept}
    return attention_outputs(Denoiser, feeds, schemes, roles)  # type: ignore[arg-type]


def test_attention_alone() -> None:
    pairs, refused = found(Model(plain))
    assert pairs == [AttentionOutput((f"blocks.{i}.attn.v",), (f"blocks.{i}.attn.out",), 8) for i in range(3)] and not refused


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x, a, v: a * torch.sigmoid(x), "its input is not what attention makes of v alone"),  # a gate of every channel
        (lambda x, a, v: a + 0.5 * x, "its input is not what attention makes of v alone"),
        (lambda x, a, v: torch.nn.functional.layer_norm(a, (K,)), "its input is not what attention makes of v alone"),
    ],
)
def test_something_between_attention_and_its_output_is_told(between: Any, reason: str) -> None:
    pairs, refused = found(Model(between))
    assert [one.outs for one in pairs] == [("blocks.0.attn.out",)] or not pairs  # blocks are taken to be alike
    assert refused["blocks.1.attn.out"] == reason and refused["blocks.2.attn.out"] == "as in the other blocks"


def test_a_gate_of_each_head_changes_nothing() -> None:
    def gated(x: torch.Tensor, a: torch.Tensor, _v: torch.Tensor) -> torch.Tensor:
        return (a.reshape(*a.shape[:2], HEADS, -1) * torch.sigmoid(x[..., :HEADS, None])).flatten(2)

    pairs, refused = found(Model(gated))
    assert len(pairs) == 3 and not refused


def test_another_reader_of_v_is_told() -> None:
    """Nothing that `out` reads differs; the prediction does."""

    class Leaking(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            leak: torch.Tensor = self.get_submodule("blocks.0.attn.v")(x)
            return super().forward(x) + leak

    pairs, refused = found(Leaking(plain))
    assert not pairs and set(refused.values()) == {"something else than attention reads v"}


def test_v_with_fewer_heads_and_layers_that_are_kept() -> None:
    class Fewer(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            k, v = (layer(x)[..., : K // HEADS].unsqueeze(1) for layer in (self.k, self.v))
            return self.out(scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    class Single(Model):
        def __init__(self) -> None:
            super().__init__(plain)
            self.blocks = nn.ModuleList([Fewer(plain, values=K // HEADS)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.blocks[0](x)
            return y

    assert found(Single()) == ([], {"blocks.0.out": "blocks.0.v have other channels than it reads"})
    pairs, refused = found(Model(plain), kept=("blocks.1.attn.v", "blocks.2.attn.out"))
    assert [one.outs for one in pairs] == [("blocks.0.attn.out",)] and refused == {"blocks.1.attn.out": "blocks.1.attn.v is not quantized"}


def test_layers_are_paired_by_the_module_that_has_both() -> None:
    roles = {
        "blocks.0.attn.to_v": "self_attn.v",
        "blocks.0.attn.add_v_proj": "text_attn.v",
        "blocks.0.attn.to_out.0": "self_attn.out",
        "blocks.0.attn.to_add_out": "text_attn.out",
        "blocks.0.cross.kv_linear": "cross_attn.kv",
        "blocks.0.cross.proj": "cross_attn.out",
        "blocks.0.ffn.out": "ffn.out",
        "alone.out": "self_attn.out",
    }
    first = AttentionOutput(("blocks.0.attn.to_v", "blocks.0.attn.add_v_proj"), ("blocks.0.attn.to_out.0", "blocks.0.attn.to_add_out"))
    assert paired(roles) == [first, AttentionOutput(("blocks.0.cross.kv_linear",), ("blocks.0.cross.proj",))]
    # Of three projections side by side, the last is v.
    one = AttentionOutput(("kv", "qkv"), ("out",), 4)
    made = one.transforms({"kv": 2, "qkv": 3}, Transform(balance=np.full(8, 2, F32), rotation=4))
    assert {n: t.start for n, t in made.items()} == {"kv": 8, "qkv": 16}


def test_statistics_of_two_streams() -> None:
    samples = [RowSample(4, 2) for _ in range(2)]
    for number, sample in enumerate(samples):
        sample.offer(row_keys((0,), 6), np.full((6, 2), number + 1, F32))
    bounds = [np.array([[[-1.0, -2.0]], [[1.0, 0.0]]], F32), np.array([[[-3.0, 0.0]], [[0.5, 4.0]]], F32)]
    both = joined_statistics([InputStatistics(np.abs(b).max(0), s, b) for b, s in zip(bounds, samples, strict=True)])
    np.testing.assert_array_equal(both.channel_absmax, [[3, 4]])
    np.testing.assert_array_equal(both.bounds, [[[-3, -2]], [[1, 4]]])
    assert sorted(both.rows[:, 0]) == [1] * 4 + [2] * 4 and all(len(s.keys) == 4 for s in samples)


def test_an_output_change_is_taken_back() -> None:
    balance = np.linspace(0.5, 2, 12, dtype=F32)
    change, wanted = OutputChange(OutputTransform(balance=balance, rotation=4, start=4)), Transform(balance=balance, rotation=4)
    y = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 20)).astype(F32))
    there = change(y)
    np.testing.assert_allclose(there[..., 4:16], wanted.input(y[..., 4:16].numpy()), atol=1e-6)
    np.testing.assert_allclose(change.undone(there), y, atol=1e-6)
    assert not torch.equal(there, y) and torch.equal(there[..., :4], y[..., :4])


@pytest.mark.parametrize("name", ["wan-i2v", "open-sora-1.2", "mochi"])
def test_families_compute_the_same(name: str, tmp_path: Path) -> None:
    """An image and a text in one attention; q, k and v in one layer; two streams that attend together."""
    p = checks.PreparedCase.make(next(case for case in cases() if case.name == name), tmp_path)
    calibration = p.rotated(checks.W8A8)
    behind = [layer for layer in calibration.layers.values() if layer.role.endswith("_attn.out")]
    assert behind and all(layer.transform.made_by for layer in behind)
    shape = p.case.shapes[0]
    assert 1e-4 < checks.distance(p.wanted(shape, checks.quantized(p, calibration)), p.wanted(shape)) < 0.05
