"""Mochi 1 text-to-video (diffusers MochiTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.correction import FrameOrder
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir
from vditc.profile import Axis

MASKED = -10000.0  # added to scores of hidden text: exp is 0, and float16 holds it


class Mochi(DiffusersAdapter):
    """Joint attention of a wide video and a narrow text stream; learned rotary frequencies; the last block drops the text."""

    name: ClassVar[str] = "mochi"
    description: ClassVar[str] = "Mochi 1 text-to-video"
    model_class: ClassVar[str] = "MochiTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p85": (85, 480, 848), "480p163": (163, 480, 848)}
    roles: ClassVar[Mapping[str, str]] = {
        r"patch_embed\.proj": "patch_embed",
        r"time_embed\.timestep_embedder\.linear_1": "time_embed.in",
        r"time_embed\.timestep_embedder\.linear_2": "time_embed.out",
        r"time_embed\.pooler\.to_(q|kv)": "text_embed.in",
        r"time_embed\.pooler\.to_out": "text_embed.out",
        r"time_embed\.caption_proj": "text_embed.in",
        r"transformer_blocks\.\d+\.norm1(_context)?\.linear(_1)?": "modulation",
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
        r"transformer_blocks\.\d+\.ff_context\.net\.0\.proj": "text_ffn.in",
        r"transformer_blocks\.\d+\.ff_context\.net\.2": "text_ffn.out",
        r"norm_out\.linear": "modulation",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {**block_frames(cross=r"attn1\.to_out\.0"), **frames_first("proj_out")}

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """The last block does not compute the text any further."""
        return (Loop(modules={"transformer_blocks": 1}, count=int(config["num_layers"]), last=1),)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], encoder_hidden_states [B, T, text_dim], timestep [B], encoder_attention_mask [B, T]."""
        config = source.config
        return (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_embed_dim"]))),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """163 frames of 480 x 848: latent 28 x 60 x 106."""
        patch = int(source.config["patch_size"])
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=28, unit="frames", stride=6, causal=True),
            "height": Axis(default=60, multiple=patch, low=patch, unit="pixels", stride=8),
            "width": Axis(default=106, multiple=patch, low=patch, unit="pixels", stride=8),
            "text_tokens": Axis(default=int(source.config["max_sequence_length"])),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """As many out as in, unless config.json says otherwise."""
        return int(source.config.get("out_channels") or source.config["in_channels"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """All clips attend at once, hidden text by a mask; positions by arithmetic instead of linspace; plain attention.

        The text's own outputs differ where it is hidden, and nothing reads those. Positions, softmax(q k^T) v and the pooled
        text round differently, about 1e-6 of the output. The mask must be ones, then zeros, as tokenizers make it.
        """
        time = model.time_embed
        with replaced(
            (model, "rope", _RotaryTables(model.rope)),
            (time, "time_proj", TimeFrequencies(time.time_proj)),
            (time.pooler, "forward", functools.partial(_pool, time.pooler)),
            *((block.attn1, "processor", _attend) for block in model.transformer_blocks),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        return model(**feeds, return_dict=False)[0]


class _RotaryTables(torch.nn.Module):
    """(cos, sin), each [tokens, heads, head_dim], of learned frequencies [3, heads, head_dim / 2]; see `rotate_neighbours`.

    Height and width are centred on 0 and scaled to a constant area.
    """

    signs: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.area = float(real.target_area)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, None, None], persistent=False)

    def forward(
        self, frequencies: torch.Tensor, frames: int, height: int, width: int, device: Any = None, dtype: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        scale = torch.sqrt(self.area / torch.scalar_tensor(height * width, dtype=torch.float32))
        seconds, rows, columns = (torch.arange(n, dtype=torch.float32) for n in (frames, height, width))
        rows, columns = (((2 * at + 1 - n) / 2) * scale for at, n in ((rows, height), (columns, width)))
        along = [at[:, None, None] * f for at, f in zip((seconds, rows, columns), frequencies, strict=True)]
        angles = (along[0][:, None, None] + along[1][:, None] + along[2]).flatten(0, 2)
        cos, sin = (torch.stack([torch.cos(angles), torch.sin(angles)]).unsqueeze(-1) * self.signs).flatten(3)
        return cos, sin


def _pool(pooler: Any, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of text [B, T, dim] over mask [B, T] attends to itself and to the text: [B, out]."""
    seen = mask.to(text.dtype)
    weights = seen / seen.sum(1, keepdim=True).clamp(min=1)
    mean = (text * weights.unsqueeze(-1)).sum(1, keepdim=True)
    key, value = torch.unflatten(pooler.to_kv(torch.cat([mean, text], 1)), 2, (2, pooler.num_attention_heads, -1)).transpose(1, 3).unbind(2)
    query = torch.unflatten(pooler.to_q(mean), 2, (pooler.num_attention_heads, -1)).transpose(1, 2)
    bias = torch.nn.functional.pad((1 - seen) * MASKED, (1, 0)).unsqueeze(1)
    # Sums instead of matrix products and Softmax: with one query this is no attention that a kernel would fuse.
    scores = (query * key).sum(-1) * query.shape[-1] ** -0.5 + bias
    shares = torch.exp(scores - scores.amax(-1, keepdim=True))
    mixed = (shares.unsqueeze(-1) * value).sum(2) / shares.sum(-1, keepdim=True)
    pooled: torch.Tensor = pooler.to_out(mixed.flatten(1))
    return pooled


def _attend(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Video hidden [B, tokens, dim] and text [B, T, text_dim] attend to both, but not to text where mask [B, T] is 0."""
    hidden, text = hidden_states, encoder_hidden_states

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.heads, -1))

    query = rotate_neighbours(attn.norm_q(heads(attn.to_q(hidden))), *image_rotary_emb)
    key = rotate_neighbours(attn.norm_k(heads(attn.to_k(hidden))), *image_rotary_emb)
    text_query = attn.norm_added_q(heads(attn.add_q_proj(text)))
    text_key = attn.norm_added_k(heads(attn.add_k_proj(text)))
    both = (query, text_query), (key, text_key), (heads(attn.to_v(hidden)), heads(attn.add_v_proj(text)))
    query, key, value = (torch.cat(pair, 1).transpose(1, 2) for pair in both)
    bias = torch.nn.functional.pad((1 - attention_mask.to(hidden.dtype)) * MASKED, (hidden.shape[1], 0))[:, None, None]
    attended = plain_attention(query, key, value, bias).transpose(1, 2).flatten(2)
    tokens = hidden.shape[1]
    video, words = attended[:, :tokens], attended[:, tokens:]
    return attn.to_out[0](video), words if attn.context_pre_only else attn.to_add_out(words)
