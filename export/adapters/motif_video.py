"""Motif-Video, text-to-video and image-to-video (diffusers MotifVideoTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.axis import Axis
from vditc.checkpoint import read_json
from vditc.correction import FrameOrder
from vditc.export.adapters.hunyuan_blocks import DOUBLE_FRAMES, VIDEO_ROLES, Joint, Pair, block_changes, key_mask, patch_grid, unpatchify
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import frames_first
from vditc.export.patches import GridRotary, TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir


class MotifVideo(DiffusersAdapter):
    """HunyuanVideo's blocks, some with another attention of the video to the text; the last single blocks are a decoder.

    The decoder starts from the patches again and attends to what the other blocks made of them. Latents come with a clean first
    frame and a mask as constant channels; the image-to-video pipeline also gives tokens of the image in front of the text.
    """

    name: ClassVar[str] = "motif-video"
    description: ClassVar[str] = "Motif-Video, text-to-video and image-to-video"
    model_class: ClassVar[str] = "MotifVideoTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"736p121": (121, 736, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        r"context_embedder\.linear_1": "text_embed.in",
        r"context_embedder\.linear_2": "text_embed.out",
        r"image_embedder\.linear_1": "image_embed.in",
        r"image_embedder\.linear_2": "image_embed.out",
        **VIDEO_ROLES,
        r"(single_)?transformer_blocks\.\d+\.cross_attn\.to_q": "cross_attn.q",
        r"(single_)?transformer_blocks\.\d+\.cross_attn\.to_k": "cross_attn.k",
        r"(single_)?transformer_blocks\.\d+\.cross_attn\.to_v": "cross_attn.v",
        r"(single_)?transformer_blocks\.\d+\.cross_attn\.to_out\.0": "cross_attn.out",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {
        **DOUBLE_FRAMES,
        **frames_first(r"transformer_blocks\.\d+\.cross_attn\.to_(q|out\.0)"),
    }

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """Decoder blocks are read otherwise than those in front of them."""
        double, single = super().loops(config)
        return double, Loop(modules=single.modules, count=single.count, last=int(config.get("num_decoder_layers", 0)))

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states and its mask [B, text_tokens, ...]; of the image-to-video
        pipeline also image_embeds [B, image_tokens, image_embed_dim]."""
        config = source.config
        specs = [
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_embed_dim"]))),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
        ]
        if _shown(source):
            specs.append(InputSpec("image_embeds", "float32", ("batch", "image_tokens", int(config["image_embed_dim"]))))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """121 frames of 736 x 1280: latent 31 x 92 x 160."""
        depth, patch = int(source.config.get("patch_size_t", 1)), int(source.config.get("patch_size", 2))
        side: dict[str, Any] = {"low": patch, "multiple": patch, "unit": "pixels", "stride": 8}
        axes = {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=31, low=depth, multiple=depth, unit="frames", stride=4, causal=True),
            "height": Axis(default=92, **side),
            "width": Axis(default=160, **side),
            "text_tokens": Axis(default=512),
        }
        return axes | ({"image_tokens": Axis(default=256)} if _shown(source) else {})

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Hidden text masked by addition; rotary tables made for each axis; a single sequence through the single blocks; plain attention.

        Rotary angles are float32 where they were float64 (1e-6 of the output), attention see `plain_attention`.
        """
        doubles, singles = list(model.transformer_blocks), list(model.single_transformer_blocks)
        blocks = [*doubles, *singles]
        changes = [change for change in block_changes(model) if change[0] not in blocks]
        changes += [(block, "forward", functools.partial(_double, block)) for block in doubles]
        changes += [(block, "forward", functools.partial(_single, block)) for block in singles]
        changes += [(b.cross_attn, "forward", functools.partial(_attend, b.cross_attn)) for b in blocks if b.cross_attn is not None]
        embed = model.time_text_embed
        with replaced(
            (model, "rope", GridRotary(model.config.rope_axes_dim, model.config.rope_theta)),
            (model, "forward", functools.partial(_run, model)),
            (embed, "time_proj", TimeFrequencies(embed.time_proj)),
            *changes,
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        return model(**feeds, return_dict=False)[0]


def _shown(source: ModelDir) -> bool:
    """Whether the pipeline shows the model an image."""
    index = source.path / "model_index.json"
    pipeline = read_json(index).get("_class_name") if index.exists() else None
    return pipeline == "MotifVideoImage2VideoPipeline" and source.config.get("image_embed_dim") is not None


class _Given(Joint):
    """Also what the cross-attention reads: `words`, the last tokens, and what hides some of them."""

    def __init__(self, embedded: torch.Tensor, rotary: Pair, mask: torch.Tensor, images: int) -> None:
        """`mask` [B, 1, 1, text_tokens] of the text, behind `images` tokens of an image."""
        shown = torch.zeros(mask.shape[0], 1, 1, images, device=mask.device)
        super().__init__(embedded, None, rotary, torch.cat([shown, mask], -1), 0)
        self.images, self.words_mask = images, mask
        tokens, both = rotary[0].shape[0], self.rotary_of_both[0].shape[0]
        self.of_video = (torch.arange(both, device=mask.device) < tokens)[None, :, None]


class _Decoding(Joint):
    """Of the decoder: nothing is hidden."""

    def __init__(self, embedded: torch.Tensor, rotary: Pair) -> None:
        super().__init__(embedded, None, rotary, torch.zeros(1, 1, 1, rotary[0].shape[0], device=embedded.device), 0)
        self.mask = None  # type: ignore[assignment]


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    image_embeds: torch.Tensor | None = None,
    return_dict: bool = False,
) -> tuple[torch.Tensor]:
    """The whole model; see `MotifVideo.inputs`."""
    patch, grid = patch_grid(model, hidden_states)
    rotary = model.rope(*(torch.arange(n, dtype=torch.float32, device=hidden_states.device) for n in grid))
    embedded, patches = model.time_text_embed(timestep), model.x_embedder(hidden_states)
    text = model.context_embedder(encoder_hidden_states)
    if image_embeds is not None:
        text = torch.cat([model.image_embedder(image_embeds), text], 1)
    given = _Given(embedded, rotary, key_mask(encoder_attention_mask), 0 if image_embeds is None else image_embeds.shape[1])
    video = patches
    for block in model.transformer_blocks:
        video, text = block(video, text, given)
    tokens, both = video.shape[1], torch.cat([video, text], 1)
    front = len(model.single_transformer_blocks) - model.num_decoder_layers
    for block in model.single_transformer_blocks[:front]:
        both = block(both, given)
    if model.num_decoder_layers:
        both, decoding = torch.cat([patches, both[:, :tokens]], 1), _Decoding(embedded, rotary)
        for block in model.single_transformer_blocks[front:]:
            both = block(both, decoding)
    return (unpatchify(model.proj_out(model.norm_out(both[:, :tokens], embedded)), grid, patch),)


def _double(block: Any, video: torch.Tensor, text: torch.Tensor, given: _Given) -> Pair:
    """video [B, tokens, dim] and text [B, T, dim], modulated apart, attend to both; then video's result to the words."""
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = given.modulation(block.norm1, 6)
    text_shift, text_scale, text_gate, text_ffn_shift, text_ffn_scale, text_ffn_gate = given.modulation(block.norm1_context, 6)
    words = block.norm1_context.norm(text) * (1 + text_scale) + text_shift
    attended, text_attended = block.attn(block.norm1.norm(video) * (1 + scale) + shift, words, given)
    video, text = video + attended * gate, text + text_attended * text_gate
    if block.cross_attn is not None:
        video = video + block.cross_attn(attended, words, given, given.rotary)
    video = video + ffn_gate * block.ff(block.norm2(video) * (1 + ffn_scale) + ffn_shift)
    text = text + text_ffn_gate * block.ff_context(block.norm2_context(text) * (1 + text_ffn_scale) + text_ffn_shift)
    return video, text


def _single(block: Any, both: torch.Tensor, given: Any) -> torch.Tensor:
    """both [B, tokens + T, dim]: attention and feed-forward side by side, one projection out."""
    shift, scale, gate = given.modulation(block.norm, 3)
    normed = block.norm.norm(both) * (1 + scale) + shift
    attended = block.attn(normed, given)
    if block.cross_attn is not None:
        # Text gets nothing added; a part of the queries alone would keep TensorRT from fusing this attention.
        read = block.cross_attn(attended, normed[:, given.rotary[0].shape[0] :], given, given.rotary_of_both)
        attended = attended + torch.where(given.of_video, read, 0.0)
    out: torch.Tensor = both + gate * block.proj_out(torch.cat([attended, block.act_mlp(block.proj_mlp(normed))], 2))
    return out


def _attend(attn: Any, x: torch.Tensor, text: torch.Tensor, given: _Given, rotary: Pair) -> torch.Tensor:
    """x [B, tokens, dim], rotated, attends to the words behind the image's tokens of text [B, T, dim]."""
    words = text[:, given.images :]

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(projected, 2, (attn.heads, -1)).transpose(1, 2)

    query, key, value = heads(attn.to_q(x)), heads(attn.to_k(words)), heads(attn.to_v(words))
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    attended = plain_attention(rotate_neighbours(query, *rotary), key, value, given.words_mask)
    out: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return out
