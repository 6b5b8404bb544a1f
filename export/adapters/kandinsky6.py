"""Kandinsky 6 text-to-video with sound (diffusers Kandinsky6Transformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.export.adapters.kandinsky5 import STRIDE, rotary_tables
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir

Pair = tuple[torch.Tensor, torch.Tensor]
MASKED = -10000.0  # added to scores of hidden text: exp is 0, and float16 holds it


def _attention(name: str, role: str) -> dict[str, str]:
    """Roles of the layers of one attention."""
    layers = {"to_query": "q", "to_key": "k", "to_value": "v", "out_layer": "out"}
    return {rf"{name}\.{layer}": f"{role}.{part}" for layer, part in layers.items()}


class Kandinsky6(DiffusersAdapter):
    """Two streams, video and audio, each with text blocks of its own; every block lets the streams attend to one another.

    The clip's sound is the second output. The reference image of the pipeline, which becomes a frame more with a type of its own, is
    left out.
    """

    name: ClassVar[str] = "kandinsky6"
    description: ClassVar[str] = "Kandinsky 6 text-to-video, with sound"
    model_class: ClassVar[str] = "Kandinsky6Transformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {
        "video_text_transformer_blocks": "num_text_blocks",
        "audio_text_transformer_blocks": "num_text_blocks",
        "visual_transformer_blocks": "num_visual_blocks",
    }
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p121": (121, 480, 864), "512p121": (121, 512, 768)}
    outputs: ClassVar[Mapping[str, str]] = {"velocity": "hidden_states", "audio": "audio_hidden_states"}
    roles: ClassVar[Mapping[str, str]] = {
        r"visual_embeddings\.in_layer": "patch_embed",
        r"audio_embeddings\.in_layer": "other_embed.in",
        r"(video|audio)_text_embeddings\.in_layer": "text_embed.in",
        r"(video|audio)_pooled_text_embeddings\.in_layer": "other_embed.in",
        r"(video|audio)_time_embeddings\.timestep_embedder\.linear_1": "time_embed.in",
        r"(video|audio)_time_embeddings\.timestep_embedder\.linear_2": "time_embed.out",
        r".*modulation\.out_layer": "modulation",
        **_attention(r"\w+_text_transformer_blocks\.\d+\.attn", "refiner_attn"),
        r"\w+_text_transformer_blocks\.\d+\.feed_forward\.net\.0\.proj": "refiner_ffn.in",
        r"\w+_text_transformer_blocks\.\d+\.feed_forward\.net\.2": "refiner_ffn.out",
        **_attention(r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention", "self_attn"),
        **_attention(r"visual_transformer_blocks\.\d+\.video_dec_block\.cross_attention", "cross_attn"),
        **_attention(r"visual_transformer_blocks\.\d+\.(audio_dec_block\.(self|cross)|va_cross|av_cross)_attention", "audio_attn"),
        r"visual_transformer_blocks\.\d+\.video_dec_block\.feed_forward\.net\.0\.proj": "ffn.in",
        r"visual_transformer_blocks\.\d+\.video_dec_block\.feed_forward\.net\.2": "ffn.out",
        r"visual_transformer_blocks\.\d+\.audio_dec_block\.feed_forward\.net\.0\.proj": "audio_ffn.in",
        r"visual_transformer_blocks\.\d+\.audio_dec_block\.feed_forward\.net\.2": "audio_ffn.out",
        r"(audio_)?out_layer\.out_layer": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = frames_first(
        r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention\.(to_(query|key|value)|out_layer)",
        r"visual_transformer_blocks\.\d+\.(video_dec_block\.cross|va_cross)_attention\.(to_query|out_layer)",
        r"visual_transformer_blocks\.\d+\.av_cross_attention\.to_(key|value)",
        r"visual_transformer_blocks\.\d+\.video_dec_block\.feed_forward\.net\.(0\.proj|2)",
        r"out_layer\.out_layer",
    )

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """The table of frame types is no layer."""
        return super().is_layer(source, weight) and weight != "visual_token_type_embeddings.weight"

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Latents of video [B, C, F, H, W] and audio [B, A, C], timestep [B], text [B, text_tokens, in_text_dim] and its mask,
        pooled_projections [B, in_text_dim2]. C of models with visual_cond: latents, clean latents, mask."""
        config = source.config
        visual = int(config["in_visual_dim"])
        channels = 2 * visual + 1 if config.get("visual_cond", True) else visual
        return (
            InputSpec("hidden_states", "float32", ("batch", channels, "frames", "height", "width")),
            InputSpec("audio_hidden_states", "float32", ("batch", "audio_tokens", int(config["in_audio_dim"]))),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["in_text_dim"]))),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
            InputSpec("pooled_projections", "float32", ("batch", int(config["in_text_dim2"]))),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """121 frames of 480 x 864. Position tables have 128 rows a side, 2048 for text and sound."""
        frame, height, width = source.config["patch_size"]
        return {
            "batch": Axis(default=1, unit="clips"),
            "frames": Axis(default=31, low=frame, multiple=frame, high=128 * frame, unit="frames", stride=4, causal=True),
            "height": Axis(default=60, low=height, multiple=height, high=128 * height, unit="pixels", stride=STRIDE),
            "width": Axis(default=108, low=width, multiple=width, high=128 * width, unit="pixels", stride=STRIDE),
            "audio_tokens": Axis(default=218, high=2048),
            "text_tokens": Axis(default=1024, high=2048),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """Those that come out."""
        return int(source.config["out_visual_dim"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Plain attention, hidden text masked by addition, rotation without 2 x 2 matrices, constant time frequencies.

        All but attention (see `plain_attention`) are the same float32 operations.
        """
        attentions = [m for m in model.modules() if type(m).__name__ == "Kandinsky6Attention"]
        times = (model.video_time_embeddings, model.audio_time_embeddings)
        with replaced(
            (model, "forward", partial(_forward, model)),
            *((attn, "processor", _attend) for attn in attentions),
            *((time, "time_proj", TimeFrequencies(time.time_proj)) for time in times),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity of the video [B, C, F, H, W]."""
        return self.forward_all(model, feeds)[0]

    def forward_all(self, model: Any, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """Predicted velocities of video [B, C, F, H, W] and audio [B, A, C]."""
        video, audio = model(
            hidden_states=feeds["hidden_states"].permute(0, 2, 3, 4, 1),
            encoder_hidden_states=feeds["encoder_hidden_states"],
            pooled_projections=feeds["pooled_projections"],
            timestep=feeds["timestep"],
            audio_hidden_states=feeds["audio_hidden_states"],
            encoder_attention_mask=feeds["encoder_attention_mask"] != 0,
            return_dict=False,
        )
        return video.permute(0, 4, 1, 2, 3), audio


def _forward(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    timestep: torch.Tensor,
    audio_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    return_dict: bool,
) -> Pair:
    """hidden_states [B, F, H, W, C] and audio_hidden_states [B, A, C] -> the same of what is predicted."""
    tokens = encoder_hidden_states.shape[1]
    mask = ((1 - encoder_attention_mask.to(torch.float32)) * MASKED)[:, None, None]
    texts, times = [], []
    for stream in ("video", "audio"):
        part = {name: getattr(model, f"{stream}_{name}") for name in ("text_embeddings", "time_embeddings", "pooled_text_embeddings")}
        text, time = part["text_embeddings"](encoder_hidden_states), part["time_embeddings"](timestep)
        time = time + part["pooled_text_embeddings"](pooled_projections)
        rope = rotary_tables(getattr(model, f"{stream}_text_rope_embeddings").angles[:tokens])
        for block in getattr(model, f"{stream}_text_transformer_blocks"):
            text = block(text, time, rope, mask)
        texts.append(text)
        times.append(time)
    video, audio = model.visual_embeddings(hidden_states), model.audio_embeddings(audio_hidden_states)
    grid, tables = video.shape[1:4], model.visual_rope_embeddings
    angles = [
        ((table[:size] if scale == 1 else table[:size] / scale).reshape(*(size if j == i else 1 for j in range(3)), -1)).expand(*grid, -1)
        for i, (table, size, scale) in enumerate(
            zip((tables.angles_0, tables.angles_1, tables.angles_2), grid, model.scale_factor, strict=True)
        )
    ]
    video_rope = rotary_tables(torch.cat(angles, -1).flatten(0, 2))
    audio_rope = rotary_tables(model.audio_rope_embeddings.angles[: audio.shape[1]])
    video = video.flatten(1, 3)
    for block in model.visual_transformer_blocks:
        video, audio = block(video, audio, *texts, tuple(times), video_rope, audio_rope, mask)
    return model.out_layer(torch.unflatten(video, 1, grid), times[0]), model.audio_out_layer(audio, times[1])


def _attend(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    rotary_emb: Pair | None = None,
    rotary_emb_kv: Pair | None = None,
    attn_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """hidden_states [B, tokens, dim] attends to itself or to encoder_hidden_states, under a mask that is added."""
    memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.num_heads, -1)).transpose(1, 2)

    query, key = attn.query_norm(heads(attn.to_query(hidden_states))), attn.key_norm(heads(attn.to_key(memory)))
    if rotary_emb is not None and rotary_emb_kv is not None:
        query, key = rotate_neighbours(query, *rotary_emb), rotate_neighbours(key, *rotary_emb_kv)
    attended = plain_attention(query, key, heads(attn.to_value(memory)), attn_mask)
    out: torch.Tensor = attn.out_layer(attended.transpose(1, 2).flatten(2))
    return out
