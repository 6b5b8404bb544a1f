"""EasyAnimate 5 and 5.1, text-to-video, image-to-video and control (diffusers EasyAnimateTransformer3DModel)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.export.adapters.cogvideox import Rotary
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir

Pair = tuple[torch.Tensor, torch.Tensor]
_BASE = (60, 90)  # latent rows and columns that all coordinates are scaled to


class EasyAnimate(DiffusersAdapter):
    """Blocks in which text and video attend to each other, with weights of their own in the first `mmdit_layers` blocks.

    Models for inpainting, which image-to-video is a case of, and for control see constant channels behind the latents.
    """

    name: ClassVar[str] = "easyanimate"
    description: ClassVar[str] = "EasyAnimate 5 and 5.1, text-to-video, image-to-video and control"
    model_class: ClassVar[str] = "EasyAnimateTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    published: ClassVar[Mapping[str, Any]] = {"patch_size": 2}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "512p49": (49, 512, 512),
        "384p49": (49, 384, 672),
        "576p49": (49, 576, 1008),
        "768p49": (49, 768, 1344),
    }
    roles: ClassVar[Mapping[str, str]] = {
        r"proj": "patch_embed",
        r"text_proj(_t5)?(\.1)?": "text_embed.in",
        r"time_embedding\.linear_1": "time_embed.in",
        r"time_embedding\.linear_2": "time_embed.out",
        r"transformer_blocks\.\d+\.norm[12]\.linear": "modulation",
        r"transformer_blocks\.\d+\.attn1\.to_q": "self_attn.q",
        r"transformer_blocks\.\d+\.attn1\.to_k": "self_attn.k",
        r"transformer_blocks\.\d+\.attn1\.to_v": "self_attn.v",
        r"transformer_blocks\.\d+\.attn1\.to_out\.0": "self_attn.out",
        r"transformer_blocks\.\d+\.attn1\.add_q_proj": "text_attn.q",
        r"transformer_blocks\.\d+\.attn1\.add_k_proj": "text_attn.k",
        r"transformer_blocks\.\d+\.attn1\.add_v_proj": "text_attn.v",
        r"transformer_blocks\.\d+\.attn1\.to_add_out": "text_attn.out",
        r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
        r"transformer_blocks\.\d+\.txt_ff\.net\.0\.proj": "text_ffn.in",
        r"transformer_blocks\.\d+\.txt_ff\.net\.2": "text_ffn.out",
        r"norm_out\.linear": "modulation",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = frames_first(
        r"transformer_blocks\.\d+\.attn1\.to_(q|k|v|out\.0)", r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)", "proj_out"
    )

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """All but what the last block computes for text, which nobody reads."""
        last = rf"transformer_blocks\.{int(source.config['num_layers']) - 1}\.(attn1\.to_add_out|txt_ff\.net\..*)\.weight"
        return not re.fullmatch(last, weight) and super().is_layer(source, weight)

    def frame_order(self, source: ModelDir, layer: str) -> FrameOrder | None:
        """None in blocks whose layers text and video share."""
        own = int(source.config["mmdit_layers"])
        block = re.match(r"transformer_blocks\.(\d+)\.", layer)
        return None if block and int(block[1]) >= own else super().frame_order(source, layer)

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One, whose last block need not update the text; of two kinds of blocks, the second is repeated."""
        count, apart = int(config["num_layers"]), int(config["mmdit_layers"])
        return (Loop(modules={"transformer_blocks": 1}, count=count, head=apart if apart < count else 1, last=1),)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, text_tokens, text_embed_dim].

        C is in_channels: what the class takes as inpaint_latents or control_latents is behind the latents. With a second text
        encoder also encoder_hidden_states_t5 [B, text_tokens_t5, text_embed_dim_t5].
        """
        config = source.config
        specs = [
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_embed_dim"]))),
        ]
        if config.get("text_embed_dim_t5"):
            width = int(config["text_embed_dim_t5"])
            specs.append(InputSpec("encoder_hidden_states_t5", "float32", ("batch", "text_tokens_t5", width)))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """49 frames of 512 x 512: latent 13 x 64 x 64."""
        patch = int(source.config["patch_size"])
        side: dict[str, Any] = {"default": 64, "low": patch, "multiple": patch, "unit": "pixels", "stride": 8}
        axes = {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=13, unit="frames", stride=4, causal=True),
            "height": Axis(**side),
            "width": Axis(**side),
            "text_tokens": Axis(default=256),
        }
        return {**axes, "text_tokens_t5": Axis(default=256)} if source.config.get("text_embed_dim_t5") else axes

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Rotary tables of symbolic sizes; rotation without indexed assignment; plain attention; layers that text and video share are
        gone through once.

        Rotation is the same float32 operations; its tables differ in the last bits, softmax(q k^T) v too. See `CogVideoX` for the
        grids whose scale is rounded another way.
        """
        with replaced(
            (model, "time_proj", TimeFrequencies(model.time_proj)),
            (model, "rope_embedding", _Rotary(model)),
            *((block, "forward", functools.partial(_block, block)) for block in model.transformer_blocks),
            *((block.attn1, "forward", functools.partial(_attend, block.attn1)) for block in model.transformer_blocks),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        feeds = dict(feeds)
        whole, channels = feeds["hidden_states"], model.config.out_channels
        if whole.shape[1] > channels:
            feeds["hidden_states"], feeds["inpaint_latents"] = whole[:, :channels], whole[:, channels:]
        return model(**feeds, return_dict=False)[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Given channels are behind the latents' own."""
        feeds = dict(call)
        if "inpaint_latents" in feeds:
            feeds["hidden_states"] = torch.cat([feeds["hidden_states"], feeds.pop("inpaint_latents")], 1)
        return feeds


class _Rotary(Rotary):
    """Tables (cos, sin) of the tokens of latents [B, C, F, H, W]."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.config.attention_head_dim)
        self.patch = model.config.patch_size

    def forward(self, latents: torch.Tensor) -> Pair:  # type: ignore[override]
        """See the class."""
        frames, height, width = latents.shape[2:]
        times, rows, columns = self.positions((frames, height // self.patch, width // self.patch), tuple(n // self.patch for n in _BASE))
        return super().forward(times, rows, columns)


def _block(block: Any, video: torch.Tensor, text: torch.Tensor, embedded: torch.Tensor, rotary: Pair) -> Pair:
    """video [B, tokens, dim] and text [B, T, dim]; layers that both go through see them as one sequence, once."""
    length = text.shape[1]
    given, words, gate, text_gate = block.norm1(video, text, embedded)
    attended, words = block.attn1(given, words, rotary)
    video, text = video + gate.unsqueeze(1) * attended, text + text_gate.unsqueeze(1) * words
    given, words, gate, text_gate = block.norm2(video, text, embedded)
    if block.txt_ff is None:
        both = block.ff(torch.cat([words, given], 1))
        given, words = both[:, length:], both[:, :length]
    else:
        given, words = block.ff(given), block.txt_ff(words)
    if block.norm3 is not None:
        given, words = block.norm3(given), block.norm3(words)
    return video + gate.unsqueeze(1) * given, text + text_gate.unsqueeze(1) * words


def _attend(attn: Any, video: torch.Tensor, text: torch.Tensor, rotary: Pair) -> Pair:
    """Both attend to both, the text in front; only video is rotated."""
    length = text.shape[1]

    def heads(x: torch.Tensor, names: tuple[str, str, str], norms: tuple[str, str]) -> list[torch.Tensor]:
        found = [torch.unflatten(getattr(attn, name)(x), 2, (attn.heads, -1)).transpose(1, 2) for name in names]
        return [found[i] if (norm := getattr(attn, n)) is None else norm(found[i]) for i, n in enumerate(norms)] + found[2:]

    plain = ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")
    if attn.add_q_proj is None:
        both = heads(torch.cat([text, video], 1), *plain)
        words, own = [x[:, :, :length] for x in both], [x[:, :, length:] for x in both]
    else:
        words, own = heads(text, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")), heads(video, *plain)
    own[:2] = [rotate_neighbours(x, *rotary) for x in own[:2]]
    query, key, value = (torch.cat(pair, 2) for pair in zip(words, own, strict=True))
    out = plain_attention(query, key, value).transpose(1, 2).flatten(2)
    return attn.to_out[0](out[:, length:]), out[:, :length] if attn.to_add_out is None else attn.to_add_out(out[:, :length])
