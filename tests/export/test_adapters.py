"""Adapters: how they are found, and that Wan's patches change nothing."""

from __future__ import annotations

import dataclasses
import re

import diffusers
import pytest
import torch
from tiny_export import SHAPES, feeds

from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for, adapters
from vditc.export.adapters.wan import Wan
from vditc.export.not_exported import NOT_EXPORTED
from vditc.model_dir import ModelDir

ATTENTION_TOLERANCE = 2e-5  # absolute, on outputs of size 10: softmax(q k^T) v in another order than PyTorch's kernel


def test_adapter_is_found_by_class(tiny: ModelDir) -> None:
    assert isinstance(adapter_for(tiny), Wan)
    assert "WanTransformer3DModel" in adapters()


def test_unknown_class_is_bad_input(tiny: ModelDir) -> None:
    other = dataclasses.replace(tiny, config={**tiny.config, "_class_name": "FooTransformer3DModel"})
    with pytest.raises(InputError, match=r"found class FooTransformer3DModel; wanted one of .*WanTransformer3DModel"):
        adapter_for(other)


def test_every_video_class_is_exported_or_says_why_not(tiny: ModelDir) -> None:
    published = {n for n in dir(diffusers) if n.endswith(("Transformer3DModel", "OmniTransformer"))}
    assert len(published) > 30
    assert published == {n for n in adapters() if n in published} | NOT_EXPORTED.keys()
    assert not adapters().keys() & NOT_EXPORTED.keys()
    for name, reason in NOT_EXPORTED.items():
        other = dataclasses.replace(tiny, config={**tiny.config, "_class_name": name})
        with pytest.raises(InputError, match=f"class {name}, which is not exported: {re.escape(reason)}"):
            adapter_for(other)


def test_weights_of_another_configuration_are_bad_input(tiny: ModelDir) -> None:
    other = dataclasses.replace(tiny, config={**tiny.config, "ffn_dim": 128})
    with pytest.raises(InputError, match=r"6 tensors missing or of another shape, first blocks\.0\.ffn"):
        Wan().load(other)


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_keep_the_outputs(tiny: ModelDir, shape: tuple[int, ...]) -> None:
    adapter, model = Wan(), Wan().load(tiny)
    inputs = {n: torch.from_numpy(a) for n, a in feeds(2, *shape).items()}
    with torch.no_grad():
        before = adapter.forward(model, inputs)
        with adapter.patched(model):
            patched = adapter.forward(model, inputs)
        after = adapter.forward(model, inputs)
    assert torch.equal(before, after)  # the patches are gone
    assert 0 < (patched - before).abs().max() <= ATTENTION_TOLERANCE


def test_patched_tables_are_exact(tiny: ModelDir) -> None:
    adapter, model = Wan(), Wan().load(tiny)
    inputs = {n: torch.from_numpy(a) for n, a in feeds(3, *SHAPES[0]).items()}

    def tables() -> tuple[torch.Tensor, ...]:
        return (*model.rope(inputs["hidden_states"]), model.condition_embedder.timesteps_proj(inputs["timestep"]))

    cos, sin, time = tables()
    with adapter.patched(model):
        patched_cos, patched_sin, patched_time = tables()
    assert torch.equal(patched_time, time)
    assert torch.equal(patched_cos, cos[0, :, 0])
    assert torch.equal(patched_sin[:, 1::2], sin[0, :, 0, 1::2])
    assert torch.equal(patched_sin[:, 0::2], -sin[0, :, 0, 0::2])
