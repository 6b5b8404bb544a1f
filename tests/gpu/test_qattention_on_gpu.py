"""QAttention against torch's attention in float32, at lengths and widths of models."""

from __future__ import annotations

import pytest
import tolerances
import torch
import torch.nn.functional as nn

from vditc.plugins.library import KernelError, Library
from vditc.plugins.torch_ops import qattention


@pytest.mark.parametrize("shape", [(1, 12, 4096, 4096, 128), (2, 8, 1000, 777, 64), (1, 4, 2049, 226, 72), (1, 2, 1, 33, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("smooth_k", [True, False])
def test_it_is_attention(library: Library, shape: tuple[int, ...], dtype: torch.dtype, smooth_k: bool) -> None:
    batch, heads, queries, keys, width = shape
    q, k, v = (torch.randn(batch, n, heads, width, device="cuda").to(dtype).transpose(1, 2) for n in (queries, keys, keys))
    wanted = nn.scaled_dot_product_attention(q.float(), k.float(), v.float())
    found = qattention(q, k, v, smooth_k=smooth_k).float()
    assert float((found - wanted).norm() / wanted.norm()) <= tolerances.QATTENTION


def test_smoothing_takes_a_common_part_of_keys_away(library: Library) -> None:
    """Keys with an outlier in every token: with smoothing as good as without it, without it far worse."""
    q, k, v = (torch.randn(1, 4, 1024, 128, device="cuda").half() for _ in range(3))
    far = k.clone()
    far[..., 5] += 60
    wanted = nn.scaled_dot_product_attention(q.float(), far.float(), v.float())
    off = {smooth: float((qattention(q, far, v, smooth_k=smooth).float() - wanted).norm() / wanted.norm()) for smooth in (True, False)}
    assert off[True] <= tolerances.QATTENTION < off[False]


def test_what_a_mask_hides_does_not_count(library: Library) -> None:
    q, k, v = (torch.randn(2, 4, n, 64, device="cuda").half() for n in (300, 256, 256))
    mask = torch.zeros(2, 1, 1, 256, device="cuda", dtype=torch.float16)
    mask[0, ..., 100:] = float("-inf")
    found = qattention(q, k, v, mask, smooth_k=False)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[0, :, 100:], changed_v[0, :, 100:] = 7, 9
    assert torch.equal(qattention(q, changed_k, changed_v, mask, smooth_k=False)[0], found[0])
    wanted = nn.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask.float())
    assert float((found.float() - wanted).norm() / wanted.norm()) <= tolerances.QATTENTION


def test_runs_are_equal(library: Library) -> None:
    """A race would show in the bits."""
    q, k, v = (torch.randn(1, 12, 3000, 128, device="cuda").bfloat16() for _ in range(3))
    first = qattention(q, k, v)
    for _ in range(20):
        assert torch.equal(qattention(q, k, v), first)


def test_bad_input(library: Library) -> None:
    q = torch.zeros(1, 2, 8, 64, device="cuda", dtype=torch.float16)
    for given in ((q.float(), q.float(), q.float()), (q, q.cpu(), q), (q, q, q[:, :1]), (q[..., :12], q[..., :12], q[..., :12])):
        with pytest.raises(KernelError):
            qattention(*given)
    assert torch.equal(qattention(q, q, q), q)
