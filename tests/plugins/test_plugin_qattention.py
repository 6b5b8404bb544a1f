"""vditc.QAttention as a plugin of TensorRT, by the host of `tensorrt_host`."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tensorrt_host import RUNTIME, Host, HostError, attributes, described

from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qattention.reference import heads_first, qattention, tolerance

Array = npt.NDArray[Any]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
KINDS = {
    "heads first": (QAttention(scale=0.125), 64),
    "by token, masked": (QAttention(scale=0.2, mask=True, q_by_token=True, k_by_token=True, v_by_token=True, y_by_token=True), 24),
    "mixed": (QAttention(scale=0.1, smooth_k=False, v_by_token=True, y_by_token=True), 72),
}


@pytest.fixture(scope="module")
def host() -> Host:
    return Host()


def inputs_of(op: QAttention, width: int, rng: np.random.Generator, queries: int = 5, keys: int = 7, masks: int = 2) -> list[Array]:
    """Two samples, three heads."""

    def tensor(tokens: int, by_token: bool) -> Array:
        shape = (2, tokens, 3, width) if by_token else (2, 3, tokens, width)
        return rng.standard_normal(shape).astype(np.float16)

    mask = np.where(rng.random((masks, 1, 1, keys)) < 0.3, -1e4, 0).astype(np.float16)
    given = {"q": tensor(queries, op.q_by_token), "k": tensor(keys, op.k_by_token), "v": tensor(keys, op.v_by_token), "mask": mask}
    return [given[name] for name in op.inputs]


def near(op: QAttention, given: list[Array], found: Array, wanted: Array) -> bool:
    off = np.abs(heads_first(found.astype(float) - wanted, op.y_by_token))
    return bool(np.all(off <= tolerance(op, *given)))


@pytest.mark.parametrize("name", KINDS)
def test_it_computes_what_the_oracle_does(name: str, host: Host, rng: np.random.Generator) -> None:
    """Built for a profile, stored, made again; the workspace of the greatest shapes is enough, and nothing is written behind it."""
    op, width = KINDS[name]
    least, best, greatest = (inputs_of(op, width, rng, *tokens) for tokens in ((1, 1), (5, 7), (40, 70)))
    plugin = host.of(op)
    plugin.configure([described(b.shape, b.dtype, least=a.shape, greatest=c.shape) for a, b, c in zip(least, best, greatest, strict=True)])
    room = plugin.workspace
    assert room > 0 and plugin.tactics == []
    plugin.reload()
    assert plugin.workspace == room
    for given in (least, best, greatest):
        (found,), wanted = plugin.run(given), qattention(op, *given)
        assert found.dtype == np.float16 and found.shape == wanted.shape
        assert near(op, given, found, wanted)


def test_one_mask_serves_all_samples(host: Host, rng: np.random.Generator) -> None:
    op, width = KINDS["by token, masked"]
    given = inputs_of(op, width, rng, masks=1)
    plugin = host.of(op)
    plugin.configure([described(a.shape, a.dtype) for a in given])
    (found,) = plugin.run(given)
    assert near(op, given, found, qattention(op, *given))


def test_a_workspace_that_is_too_small_is_said(host: Host, rng: np.random.Generator) -> None:
    op, width = KINDS["heads first"]
    stored = {**attributes(op), "workspace_bytes": (16).to_bytes(8, "little")}
    plugin = host.create("QAttention", stored, layer="blocks.0.attn1", phase=RUNTIME)
    with pytest.raises(HostError, match=r"(?s)run 4: .*vditc.QAttention, layer blocks.0.attn1: qattention: a workspace of 16 bytes; w"):
        plugin.run(inputs_of(op, width, rng))


BAD: list[tuple[str, int, tuple[int, ...], str]] = [
    ("k", 1, (2, 3, 7, 32), "k [2, 3, 7, 32]; wanted [2, 3, 7, 64]"),
    ("k", 1, (2, 4, 7, 64), "k [2, 4, 7, 64]; wanted [2, 3, 7, 64]"),
    ("v", 2, (2, 3, 8, 64), "v [2, 3, 8, 64]; wanted [2, 3, 7, 64]"),
    ("q", 0, (2, 5, 64), "q of 3 axes; wanted 4"),
]


@pytest.mark.parametrize(("name", "at", "shape", "said"), BAD, ids=[said for *_, said in BAD])
def test_tensors_that_do_not_fit_are_refused(
    name: str, at: int, shape: tuple[int, ...], said: str, host: Host, rng: np.random.Generator
) -> None:
    given = inputs_of(*KINDS["heads first"], rng)
    given[at] = np.zeros(shape, np.float16)
    with pytest.raises(HostError) as caught:
        host.of(KINDS["heads first"][0]).configure([described(a.shape, a.dtype) for a in given])
    assert f"layer layer: {said}" in str(caught.value)


def test_bad_widths_types_and_masks_are_refused(host: Host, rng: np.random.Generator) -> None:
    op, width = KINDS["by token, masked"]
    for given, said in (
        (inputs_of(op, 20, rng), "heads of 20 channels; wanted a multiple of 8 up to 128"),
        (inputs_of(op, 136, rng), "heads of 136 channels"),
        ([a.astype(np.float32) for a in inputs_of(op, width, rng)], "q is float32; wanted float16 or bfloat16"),
        (inputs_of(op, width, rng, masks=3), r"mask \[3, 1, 1, 7\]; wanted \[2, 1, 1, 7\]"),
    ):
        with pytest.raises(HostError, match=said):
            host.of(op).configure([described(a.shape, a.dtype) for a in given])
    with pytest.raises(HostError, match="scale 0; wanted a number from 1e-20 to 1e20"):
        host.create("QAttention", attributes(op) | {"scale": 0.0})
