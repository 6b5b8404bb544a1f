"""Which attention is seen, with what ranges and errors, and how it gets into the calibration file."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.nn.functional import scaled_dot_product_attention

from vditc.attention import AttentionScheme
from vditc.calibrate import attention_watch, quantized_attention
from vditc.calibrate.attention_watch import AttentionWatch
from vditc.errors import VditcError
from vditc.numerics import QType

INT8 = AttentionScheme(qk=QType.INT8, smooth_k=True, pv=QType.INT8, smooth_v=True)
STEPS, CLIPS = 5, 2


class Twice(torch.nn.Module):
    """An attention that is called for two contexts, through diffusers and through torch."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ours: torch.Tensor = scaled_dot_product_attention(q, k[:, :, :4], v[:, :, :4])
        theirs: torch.Tensor = dispatch_attention_fn(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        return ours + theirs


class Block(torch.nn.Module):
    """Attention one level down, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.attn = torch.nn.Linear(8, 8), Twice()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attn(self.linear(q), k, v)
        return out


def tensors(seed: int, tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, 8, generator=g) for n in (tokens, 7, 7))
    return q, k + 2, v - 3


@torch.no_grad()
def watched(scheme: AttentionScheme, runs: list[tuple[int, Any]], clip: int = 0) -> tuple[AttentionWatch, Block]:
    torch.manual_seed(0)
    watch, block = AttentionWatch(scheme, STEPS, CLIPS), Block()
    with watch.watching(block):
        for step, given in runs:
            watch.begin(clip, step)
            block(*given)
    return watch, block


def test_calls_belong_to_the_innermost_module_and_have_their_ranges() -> None:
    runs = [(0, tensors(0)), (1, tensors(1, 5))]
    watch, block = watched(INT8, runs)
    found = watch.result()
    assert list(found) == ["attn", "attn#2"]
    assert [f.tokens for f in found.values()] == [(6, 4), (6, 7)]
    with torch.no_grad():
        projected = [block.linear(q) for _, (q, _, _) in runs]
    second = found["attn#2"]
    np.testing.assert_array_equal(second.q, np.max([p.abs().amax((0, 2, 3)).numpy() for p in projected], 0))
    np.testing.assert_array_equal(second.k, np.max([k.abs().amax((0, 2, 3)).numpy() for _, (_, k, _) in runs], 0))
    smooth = [(k - k.mean(2, keepdim=True)).abs().amax((0, 2, 3)).numpy() for _, (_, k, _) in runs]
    np.testing.assert_array_equal(second.k_smooth, np.max(smooth, 0))
    channels = [(v - v.mean(2, keepdim=True)).abs().amax((0, 2)).numpy() for _, (_, _, v) in runs]
    np.testing.assert_array_equal(second.v, np.max(channels, 0))
    assert second.v.shape == (3, 8) and (second.k_smooth < second.k).all()


def test_errors_are_those_of_the_measured_steps_together() -> None:
    runs = [(step, tensors(step)) for step in range(STEPS)]
    watch, block = watched(INT8, runs)
    squares = np.zeros((STEPS, 2))
    for step, (q, k, v) in runs:
        with torch.no_grad():
            exact = scaled_dot_product_attention(block.linear(q), k, v)
            ours = quantized_attention.quantized_attention(block.linear(q), k, v, INT8)
        squares[step] = float((exact - ours).double().square().sum()), float(exact.double().square().sum())
    found = watch.result()["attn#2"]
    assert [step for step, _ in found.errors] == [0, 1, 3, 4]  # four of five
    for step, error in found.errors:
        assert error == pytest.approx(np.sqrt(squares[step, 0] / squares[step, 1]), rel=1e-4)
    total = squares[[0, 1, 3, 4]].sum(0)
    assert found.error == pytest.approx(np.sqrt(total[0] / total[1]), rel=1e-4) and 0 < found.error < 0.05


@pytest.mark.parametrize(("tokens", "block", "count"), [(1000, 1, 256), (1000, 64, 4 * 64), (1000, 300, 300), (100, 64, 100), (3, 64, 3)])
def test_queries_that_are_compared_are_whole_blocks(tokens: int, block: int, count: int) -> None:
    rows = AttentionWatch(AttentionScheme(qk=QType.INT8, block_size=block), STEPS, CLIPS)._rows(tokens).numpy()
    assert 0 < len(rows) <= max(256, block) and len(rows) > count - block and rows[0] == 0 and rows[-1] < tokens
    starts = rows[rows % block == 0]
    whole = np.concatenate([np.arange(s, min(s + block, tokens)) for s in starts])
    np.testing.assert_array_equal(rows, whole)


def test_a_sample_of_queries_has_the_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [(0, tensors(0, 400))]
    scheme = dataclasses.replace(INT8, block_size=16)
    sampled = watched(scheme, runs)[0].result()["attn"].error
    monkeypatch.setattr(attention_watch, "ROWS", 1000)
    assert sampled == pytest.approx(watched(scheme, runs)[0].result()["attn"].error, rel=0.1)


def test_masks_reach_the_comparison() -> None:
    class Masked(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: Any) -> torch.Tensor:
            out: torch.Tensor = scaled_dot_product_attention(q, k, v, **how)
            return out

    q, k, v = tensors(0, 7)
    hidden = k[:, :1, None, :, 0] < 2
    for how in ({"is_causal": True}, {"attn_mask": torch.eye(7) == 0}, {"attn_mask": torch.zeros(2, 1, 1, 7).masked_fill(hidden, -1e9)}):
        watch, module = AttentionWatch(INT8, STEPS, CLIPS), Masked()
        with watch.watching(module):
            watch.begin(0, 0)
            module(q, k, v, how)
        assert 0 < watch.result()[""].error < 0.05, how


def test_state_comes_back() -> None:
    one, _ = watched(INT8, [(0, tensors(0)), (1, tensors(1))])
    arrays, tokens = one.state()
    other = AttentionWatch(INT8, STEPS, CLIPS).restored(arrays, tokens)
    assert other.state()[1] == tokens == {"attn": [6, 4], "attn#2": [6, 7]}
    for name, array in other.state()[0].items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(KeyError):
        other.restored({}, tokens)


def test_merged_watches_are_that_of_all_clips() -> None:
    runs = {0: [(step, tensors(step)) for step in range(STEPS)], 1: [(step, tensors(10 + step, 9)) for step in range(STEPS)]}
    whole, _ = watched(INT8, runs[0], 0)
    more, _ = watched(INT8, runs[1], 1)
    both = AttentionWatch(INT8, STEPS, CLIPS)
    for part in (more, whole):
        both.merge(AttentionWatch(INT8, STEPS, CLIPS).restored(*part.state()))
    whole.merge(more)
    for name, found in whole.result().items():
        assert json.dumps(found.to_json()) == json.dumps(both.result()[name].to_json()) and found.tokens[0] == 9
        errors = [part.result()[name].error for part in (watched(INT8, runs[0])[0], more)]
        assert min(errors) < found.error < max(errors)


def test_what_cannot_be_calibrated_is_said() -> None:
    with pytest.raises(VditcError, match=r"found no call of torch's scaled_dot_product_attention"):
        AttentionWatch(INT8, STEPS, CLIPS).result()
    q, k, v = tensors(0)
    with pytest.raises(VditcError, match=r"found attention attn with values that are not finite"):
        watched(INT8, [(0, (q, k * torch.inf, v))])[0].result()
    with pytest.raises(VditcError, match=r"found 2 heads of attention attn, before 3"):
        watched(INT8, [(0, (q, k, v)), (0, (q[:, :2], k[:, :2], v[:, :2]))])


def test_nothing_is_seen_outside() -> None:
    watch, block = watched(INT8, [(0, tensors(0))])
    before = watch.state()[1]
    with torch.no_grad():
        block(*tensors(9, 20))
    assert watch.state()[1] == before and not block._forward_pre_hooks and not block.attn._forward_hooks
