"""AnyFlow, text-to-video by flow maps (diffusers AnyFlowTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.export.adapters.wan import Wan
from vditc.export.adapters.wan_blocks import RotaryTables, attend, finish, frame_tokens, run_block
from vditc.export.patches import TimeFrequencies, replaced
from vditc.model_dir import ModelDir


class AnyFlow(Wan):
    """Wan's blocks, told for every frame the timestep it is at and the one to go to."""

    name: ClassVar[str] = "anyflow"
    description: ClassVar[str] = "AnyFlow, text-to-video by flow maps"
    model_class: ClassVar[str] = "AnyFlowTransformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p81": (81, 480, 832)}
    roles: ClassVar[Mapping[str, str]] = {
        **Wan.roles,
        r"condition_embedder\.delta_embedder\.linear_1": "time_embed.in",
        r"condition_embedder\.delta_embedder\.linear_2": "time_embed.out",
    }

    def time_per_frame(self, source: ModelDir) -> bool:
        """Always: frames that are given have timestep 0."""
        return True

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Wan's with timestep [B, F], and r_timestep [B, F], where the step goes."""
        return (*super().inputs(source), InputSpec("r_timestep", "float32", ("batch", "frames"), "timestep"))

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Rotation of real pairs in float32 instead of complex numbers in float64; the rest as Wan's (about 1e-6 of the output)."""
        embedder = model.condition_embedder
        with replaced(
            (model, "rope", RotaryTables(_real(model.rope))),
            (embedder, "timesteps_proj", TimeFrequencies(embedder.timesteps_proj)),
            *((b.attn1, "processor", attend) for b in model.blocks),
            *((b.attn2, "processor", attend) for b in model.blocks),
            *((b, "forward", functools.partial(run_block, b)) for b in model.blocks),
            (model, "forward", functools.partial(_run, model)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]; the class has frames before channels."""
        if isinstance(model.rope, RotaryTables):
            return model(**feeds)
        return model(**{**feeds, "hidden_states": feeds["hidden_states"].transpose(1, 2)}, return_dict=False)[0].transpose(1, 2)

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class has frames before channels."""
        return {**call, "hidden_states": call["hidden_states"].transpose(1, 2)}

    def handed_back(self, prediction: Any, call: Mapping[str, Any]) -> Any:
        """[B, F, C, H, W]."""
        return prediction.transpose(1, 2)


def _real(rope: Any) -> Any:
    """The complex table [positions, head_dim / 2] as two real ones with every number twice."""
    table = rope._build_freqs(torch.device("cpu")).repeat_interleave(2, 1)
    cos, sin = table.real.to(torch.float32), table.imag.to(torch.float32)
    return SimpleNamespace(
        freqs_cos=cos, freqs_sin=sin, attention_head_dim=rope.attention_head_dim, patch_size=rope.patch_size, max_seq_len=rope.max_seq_len
    )


def _run(
    model: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    r_timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_hidden_states_image: torch.Tensor | None = None,
) -> torch.Tensor:
    """The model's forward pass, frame by frame."""
    embedder = model.condition_embedder
    goal = r_timestep if embedder.deltatime_type == "r" else timestep - r_timestep
    now, then = (
        torch.unflatten(embed(embedder.timesteps_proj(times.flatten())), 0, tuple(times.shape))
        for embed, times in ((embedder.time_embedder, timestep), (embedder.delta_embedder, goal))
    )
    times = (1 - embedder.delta_emb_gate) * now + embedder.delta_emb_gate * then
    modulation = torch.unflatten(embedder.time_proj(embedder.act_fn(times)), 2, (6, -1))
    context = embedder.text_embedder(encoder_hidden_states)
    if encoder_hidden_states_image is not None:
        context = torch.cat([embedder.image_embedder(encoder_hidden_states_image), context], 1)
    rotary = model.rope(hidden_states)
    hidden = frame_tokens(model.patch_embedding, hidden_states)
    for block in model.blocks:
        hidden = block(hidden, context, modulation, rotary)
    return finish(model, hidden, times, hidden_states)
