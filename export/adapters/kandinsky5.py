"""Kandinsky 5 text- and image-to-video (diffusers Kandinsky5Transformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.checkpoint import read_json
from vditc.correction import FrameOrder
from vditc.errors import InputError
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import frames_first
from vditc.export.patches import plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir
from vditc.profile import Axis

STRIDE = 8  # pixels of a latent


class Kandinsky5(DiffusersAdapter):
    """A few text blocks, then blocks of self-attention, cross-attention and feed-forward; rotary positions stretched for large clips."""

    name: ClassVar[str] = "kandinsky5"
    description: ClassVar[str] = "Kandinsky 5 text-to-video, image-to-video (5 s models)"
    model_class: ClassVar[str] = "Kandinsky5Transformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"text_transformer_blocks": "num_text_blocks", "visual_transformer_blocks": "num_visual_blocks"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"512p121": (121, 512, 768), "768p121": (121, 768, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        r"visual_embeddings\.in_layer": "patch_embed",
        r"text_embeddings\.in_layer": "text_embed.in",
        r"pooled_text_embeddings\.in_layer": "other_embed.in",
        r"time_embeddings\.in_layer": "time_embed.in",
        r"time_embeddings\.out_layer": "time_embed.out",
        r"(text|visual)_transformer_blocks\.\d+\.(text|visual)_modulation\.out_layer": "modulation",
        r"out_layer\.modulation\.out_layer": "modulation",
        r"text_transformer_blocks\.\d+\.self_attention\.to_query": "refiner_attn.q",
        r"text_transformer_blocks\.\d+\.self_attention\.to_key": "refiner_attn.k",
        r"text_transformer_blocks\.\d+\.self_attention\.to_value": "refiner_attn.v",
        r"text_transformer_blocks\.\d+\.self_attention\.out_layer": "refiner_attn.out",
        r"text_transformer_blocks\.\d+\.feed_forward\.in_layer": "refiner_ffn.in",
        r"text_transformer_blocks\.\d+\.feed_forward\.out_layer": "refiner_ffn.out",
        r"visual_transformer_blocks\.\d+\.self_attention\.to_query": "self_attn.q",
        r"visual_transformer_blocks\.\d+\.self_attention\.to_key": "self_attn.k",
        r"visual_transformer_blocks\.\d+\.self_attention\.to_value": "self_attn.v",
        r"visual_transformer_blocks\.\d+\.self_attention\.out_layer": "self_attn.out",
        r"visual_transformer_blocks\.\d+\.cross_attention\.to_query": "cross_attn.q",
        r"visual_transformer_blocks\.\d+\.cross_attention\.to_key": "cross_attn.k",
        r"visual_transformer_blocks\.\d+\.cross_attention\.to_value": "cross_attn.v",
        r"visual_transformer_blocks\.\d+\.cross_attention\.out_layer": "cross_attn.out",
        r"visual_transformer_blocks\.\d+\.feed_forward\.in_layer": "ffn.in",
        r"visual_transformer_blocks\.\d+\.feed_forward\.out_layer": "ffn.out",
        r"out_layer\.out_layer": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = frames_first(
        r"visual_transformer_blocks\.\d+\.self_attention\.(to_(query|key|value)|out_layer)",
        r"visual_transformer_blocks\.\d+\.cross_attention\.(to_query|out_layer)",
        r"visual_transformer_blocks\.\d+\.feed_forward\.(in|out)_layer",
        r"out_layer\.out_layer",
    )

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, text_tokens, in_text_dim],
        pooled_projections [B, in_text_dim2]. C of models with visual_cond: latents, clean latents, mask.

        InputError for the sparse models (10 s) and for image models, whose positions are stretched otherwise.
        """
        config, latents = source.config, self.latent_channels(source)
        index = source.path / "model_index.json"
        pipeline = str(read_json(index).get("_class_name")) if index.exists() else ""
        if (kind := config.get("attention_type", "regular")) != "regular":
            raise self.unknown(source, f"attention_type {kind}", "regular attention")
        if pipeline in ("Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"):
            raise self.unknown(source, pipeline, "a video model")
        channels = 2 * int(config["in_visual_dim"]) + 1 if config.get("visual_cond") else latents
        return (
            InputSpec("hidden_states", "float32", ("batch", channels, "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["in_text_dim"]))),
            InputSpec("pooled_projections", "float32", ("batch", int(config["in_text_dim2"]))),
        )

    def unknown(self, source: ModelDir, found: str, wanted: str) -> InputError:
        """This checkpoint is of a kind that is not served."""
        return InputError(found=found, wanted=wanted, where=str(source.path), fix="use a 5 s text-to-video or image-to-video model")

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """5 seconds, 512 x 768: latent 31 x 64 x 96. Position tables have 128 rows a side, 1024 for text."""
        frame, height, width = source.config["patch_size"]
        return {
            "batch": Axis(default=1, unit="clips"),
            "frames": Axis(default=31, low=frame, multiple=frame, high=128 * frame, unit="frames", stride=4, causal=True),
            "height": Axis(default=64, low=height, multiple=height, high=128 * height, unit="pixels", stride=STRIDE),
            "width": Axis(default=96, low=width, multiple=width, high=128 * width, unit="pixels", stride=STRIDE),
            "text_tokens": Axis(default=256, high=1024),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """Those that come out."""
        return int(source.config["out_visual_dim"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Plain attention, rotation without 2 x 2 matrices, tables cut once for all clips.

        diffusers rounds rotated queries and keys to bfloat16 even when the model is float32 (3e-3 of a value); here they keep
        their type. The rest are the same float32 operations.
        """
        blocks = [*model.text_transformer_blocks, *model.visual_transformer_blocks]
        attentions = [a for b in blocks for n, a in b.named_children() if n.endswith("_attention")]
        with replaced((model, "forward", partial(_forward, model)), *((a, "processor", attend) for a in attentions)):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        x = feeds["hidden_states"].permute(0, 2, 3, 4, 1)
        grid = [size // patch for size, patch in zip(x.shape[1:4], model.patch_size, strict=True)]
        stretch = _stretch(x.shape[2], x.shape[3])
        predicted = model(
            hidden_states=x,
            encoder_hidden_states=feeds["encoder_hidden_states"],
            timestep=feeds["timestep"],
            pooled_projections=feeds["pooled_projections"],
            visual_rope_pos=[torch.arange(n) for n in grid],
            text_rope_pos=torch.arange(feeds["encoder_hidden_states"].shape[1]),
            scale_factor=(1.0, stretch, stretch),
            return_dict=False,
        )
        return predicted.permute(0, 4, 1, 2, 3)

    made_inside: ClassVar[frozenset[str]] = frozenset({"visual_rope_pos", "text_rope_pos", "scale_factor"})

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class has channels last."""
        return {**call, "hidden_states": call["hidden_states"].permute(0, 4, 1, 2, 3)}

    def handed_back(self, prediction: Any, call: Mapping[str, Any]) -> Any:
        """[B, F, H, W, C]."""
        return prediction.permute(0, 2, 3, 4, 1)


def _stretch(height: int, width: int) -> torch.Tensor:
    """By what positions are divided [1]: 2 where both sides have 480 to 854 pixels, else 3.16."""
    sides = torch.cat([torch.full((1,), side, dtype=torch.float32) for side in (height, width)]) * STRIDE
    fits = ((sides >= 480) & (sides <= 854)).to(torch.float32).amin(0, keepdim=True)
    return 3.16 - 1.16 * fits


def _forward(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    pooled_projections: torch.Tensor,
    scale_factor: tuple[float, torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """hidden_states [B, F, H, W, C] -> [B, F, H, W, C]."""
    text = model.text_embeddings(encoder_hidden_states)
    time = model.time_embeddings(timestep) + model.pooled_text_embeddings(pooled_projections)
    rope = rotary_tables(model.text_rope_embeddings.args[: text.shape[1]])
    for block in model.text_transformer_blocks:
        text = block(text, time, rope)
    x = model.visual_embeddings(hidden_states)
    grid = x.shape[1:4]
    tables = model.visual_rope_embeddings
    angles = [
        (table[:size] if i == 0 else table[:size] / scale_factor[i]).reshape(*(size if j == i else 1 for j in range(3)), -1)
        for i, (table, size) in enumerate(zip((tables.args_0, tables.args_1, tables.args_2), grid, strict=True))
    ]
    rope = rotary_tables(torch.cat([a.expand(*grid, -1) for a in angles], -1).flatten(0, 2))
    x = x.flatten(1, 3)
    for block in model.visual_transformer_blocks:
        x = block(x, text, time, rope, None)
    out: torch.Tensor = model.out_layer(torch.unflatten(x, 1, grid), text, time)
    return out


def rotary_tables(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles [tokens, head_dim / 2] -> (cos, sin) for `rotate_neighbours`, each [tokens, head_dim]."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    return torch.stack([cos, cos], -1).flatten(1), torch.stack([-sin, sin], -1).flatten(1)


def attend(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    sparse_params: None = None,
    rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """hidden_states [B, tokens, dim] attends to itself or to encoder_hidden_states."""
    memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.num_heads, -1)).transpose(1, 2)

    query, key = attn.query_norm(heads(attn.to_query(hidden_states))), attn.key_norm(heads(attn.to_key(memory)))
    if rotary_emb is not None:
        query, key = rotate_neighbours(query, *rotary_emb), rotate_neighbours(key, *rotary_emb)
    attended = plain_attention(query, key, heads(attn.to_value(memory)))
    out: torch.Tensor = attn.out_layer(attended.transpose(1, 2).flatten(2))
    return out
