"""What the HunyuanVideo families share: text refiner, double and single blocks, masks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vditc.correction import FrameOrder
from vditc.export.frame_orders import frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, rotate_neighbours, still

Pair = tuple[torch.Tensor, torch.Tensor]
Change = tuple[Any, str, Any]
HIDDEN = -10000.0  # added to a score: exp of it is 0, and float16 can hold it

TEXT_ROLES: Mapping[str, str] = {
    r"context_embedder\.proj_in": "text_embed.in",
    r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1": "time_embed.in",
    r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2": "time_embed.out",
    r"context_embedder\.time_text_embed\.text_embedder\.linear_1": "text_embed.in",
    r"context_embedder\.time_text_embed\.text_embedder\.linear_2": "text_embed.out",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.attn\.to_q": "refiner_attn.q",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.attn\.to_k": "refiner_attn.k",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.attn\.to_v": "refiner_attn.v",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.attn\.to_out\.0": "refiner_attn.out",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.ff\.net\.0\.proj": "refiner_ffn.in",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.ff\.net\.2": "refiner_ffn.out",
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.norm_out\.linear": "modulation",
}
DOUBLE_ROLES: Mapping[str, str] = {
    r"transformer_blocks\.\d+\.norm1(_context)?\.linear": "modulation",
    r"transformer_blocks\.\d+\.attn\.to_q": "self_attn.q",
    r"transformer_blocks\.\d+\.attn\.to_k": "self_attn.k",
    r"transformer_blocks\.\d+\.attn\.to_v": "self_attn.v",
    r"transformer_blocks\.\d+\.attn\.to_out\.0": "self_attn.out",
    r"transformer_blocks\.\d+\.attn\.add_q_proj": "text_attn.q",
    r"transformer_blocks\.\d+\.attn\.add_k_proj": "text_attn.k",
    r"transformer_blocks\.\d+\.attn\.add_v_proj": "text_attn.v",
    r"transformer_blocks\.\d+\.attn\.to_add_out": "text_attn.out",
    r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
    r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
    r"transformer_blocks\.\d+\.ff_context\.net\.0\.proj": "text_ffn.in",
    r"transformer_blocks\.\d+\.ff_context\.net\.2": "text_ffn.out",
    r"norm_out\.linear": "modulation",
    r"proj_out": "head",
}
VIDEO_ROLES: Mapping[str, str] = {
    r"x_embedder\.proj": "patch_embed",
    r"time_text_embed\.(timestep|guidance)_embedder\.linear_1": "time_embed.in",
    r"time_text_embed\.(timestep|guidance)_embedder\.linear_2": "time_embed.out",
    r"time_text_embed\.text_embedder\.linear_1": "text_embed.in",
    r"time_text_embed\.text_embedder\.linear_2": "text_embed.out",
    **DOUBLE_ROLES,
    r"single_transformer_blocks\.\d+\.norm\.linear": "modulation",
    r"single_transformer_blocks\.\d+\.attn\.to_q": "self_attn.q",
    r"single_transformer_blocks\.\d+\.attn\.to_k": "self_attn.k",
    r"single_transformer_blocks\.\d+\.attn\.to_v": "self_attn.v",
    r"single_transformer_blocks\.\d+\.proj_mlp": "ffn.in",
    r"single_transformer_blocks\.\d+\.proj_out": "ffn.out",  # of attention's and feed-forward's channels side by side
}

# Of double blocks; single blocks have video and text in one sequence.
DOUBLE_FRAMES: Mapping[str, FrameOrder] = frames_first(
    r"transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)", r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)", "proj_out"
)


class Joint:
    """What all blocks are given: modulation vectors [B, dim], rotary tables, what hides keys of the sequence video, text.

    With `first_embedded` the first `frame` tokens, those of the first frame, are modulated by it instead of `embedded`.
    """

    def __init__(self, embedded: torch.Tensor, first_embedded: torch.Tensor | None, rotary: Pair, mask: torch.Tensor, frame: int) -> None:
        """`mask`: of the text, as `key_mask` makes it. `rotary`: of the video, [tokens, head_dim]."""
        self.embedded, self.first_embedded, self.rotary = embedded, first_embedded, rotary
        tokens, text = rotary[0].shape[0], mask.shape[-1]
        self.rotary_of_both = still(text, rotary, behind=True)
        self.mask = torch.cat([torch.zeros(mask.shape[0], 1, 1, tokens, device=mask.device), mask], -1)
        if first_embedded is not None:
            self.first, self.first_of_both = ((torch.arange(n, device=mask.device) < frame)[None, :, None] for n in (tokens, tokens + text))

    def modulation(self, norm: Any, parts: int, first: str = "") -> list[torch.Tensor]:
        """The norm's linear layer of `embedded` in parts [B, 1, dim], or [B, tokens, dim] where `first` is of the tokens."""
        found = [p.unsqueeze(1) for p in norm.linear(norm.silu(self.embedded)).chunk(parts, 1)]
        if self.first_embedded is None or not first:
            return found
        others = norm.linear(norm.silu(self.first_embedded)).chunk(parts, 1)
        return [torch.where(getattr(self, first), b.unsqueeze(1), a) for a, b in zip(found, others, strict=True)]


def block_changes(model: Any) -> list[Change]:
    """Patches of double and, if the model has them, single blocks, which then take (video, text, joint) and (both, joint)."""
    changes: list[Change] = []
    for block in model.transformer_blocks:
        changes += [(block, "forward", functools.partial(_double, block)), (block.attn, "forward", functools.partial(_attend, block.attn))]
    for block in getattr(model, "single_transformer_blocks", ()):
        attn = block.attn
        changes += [(block, "forward", functools.partial(_single, block)), (attn, "forward", functools.partial(_attend_as_one, attn))]
    return changes


def refiner_changes(embedder: Any, first_seen: bool) -> list[Change]:
    """Patches of the text refiner; `first_seen`: its first token is never hidden."""
    refiner, time = embedder.token_refiner, embedder.time_text_embed
    changes: list[Change] = [
        (time, "time_proj", TimeFrequencies(time.time_proj)),
        (refiner, "forward", functools.partial(_refine, refiner, first_seen)),
    ]
    return changes + [(b.attn, "forward", functools.partial(_attend_text, b.attn)) for b in refiner.refiner_blocks]


def key_mask(seen: torch.Tensor) -> torch.Tensor:
    """seen [B, T], zero or false where a token is hidden -> what to add to scores, [B, 1, 1, T]."""
    return ((1 - seen.to(torch.float32)) * HIDDEN)[:, None, None]


def counted(mask: torch.Tensor) -> torch.Tensor:
    """As many tokens from the left as mask [B, T] has ones: [B, T]."""
    return torch.arange(mask.shape[1], dtype=torch.float32, device=mask.device) < mask.to(torch.float32).sum(1, keepdim=True)


def patch_grid(model: Any, latents: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(depth, height, width) of a patch, and how many patches of latents [B, C, F, H, W] lie along each."""
    config = model.config
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    return patch, tuple(size // p for size, p in zip(latents.shape[2:], patch, strict=True))


def unpatchify(tokens: torch.Tensor, grid: Sequence[int], patch: Sequence[int]) -> torch.Tensor:
    """tokens [B, F' H' W', C and a patch] -> [B, C, F, H, W]."""
    blocks = torch.unflatten(torch.unflatten(tokens, 1, tuple(grid)), 4, (-1, *patch)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return blocks.flatten(6).flatten(4, 5).flatten(2, 3)


def _double(block: Any, video: torch.Tensor, text: torch.Tensor, joint: Joint) -> Pair:
    """video [B, tokens, dim] and text [B, T, dim], modulated apart, attend to both."""
    parts = (joint.modulation(block.norm1, 6, "first"), joint.modulation(block.norm1_context, 6))
    streams, norms = (video, text), ((block.norm1.norm, block.norm2), (block.norm1_context.norm, block.norm2_context))
    given = [norm[0](x) * (1 + p[1]) + p[0] for x, p, norm in zip(streams, parts, norms, strict=True)]
    out = []
    for x, attended, p, norm, ff in zip(streams, block.attn(*given, joint), parts, norms, (block.ff, block.ff_context), strict=True):
        x = x + attended * p[2]
        out.append(x + ff(norm[1](x) * (1 + p[4]) + p[3]) * p[5])
    return out[0], out[1]


def _single(block: Any, both: torch.Tensor, joint: Joint) -> torch.Tensor:
    """both [B, tokens + T, dim]: attention and feed-forward side by side, one projection out."""
    shift, scale, gate = joint.modulation(block.norm, 3, "first_of_both")
    given = block.norm.norm(both) * (1 + scale) + shift
    out: torch.Tensor = both + gate * block.proj_out(torch.cat([block.attn(given, joint), block.act_mlp(block.proj_mlp(given))], 2))
    return out


def _heads(attn: Any, x: torch.Tensor, names: Sequence[str], norms: Sequence[str]) -> list[torch.Tensor]:
    """Query, key and value of x [B, tokens, dim], each [B, heads, tokens, head_dim], normed where the layer norms them."""
    found = [torch.unflatten(getattr(attn, name)(x), 2, (attn.heads, -1)).transpose(1, 2) for name in names]
    for i, name in enumerate(norms):
        if (norm := getattr(attn, name)) is not None:
            found[i] = norm(found[i])
    return found


def _attend(attn: Any, video: torch.Tensor, text: torch.Tensor, joint: Joint) -> Pair:
    """Attention of a double block; only video is rotated."""
    tokens = video.shape[1]
    query, key, value = _heads(attn, video, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
    query, key = (rotate_neighbours(x, *joint.rotary) for x in (query, key))
    words = _heads(attn, text, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"))
    query, key, value = (torch.cat(pair, 2) for pair in zip((query, key, value), words, strict=True))
    out = plain_attention(query, key, value, joint.mask).transpose(1, 2).flatten(2)
    return attn.to_out[0](out[:, :tokens]), attn.to_add_out(out[:, tokens:])


def _attend_as_one(attn: Any, both: torch.Tensor, joint: Joint) -> torch.Tensor:
    """Attention of a single block, whose output projection is the block's."""
    query, key, value = _heads(attn, both, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
    query, key = (rotate_neighbours(x, *joint.rotary_of_both) for x in (query, key))
    return plain_attention(query, key, value, joint.mask).transpose(1, 2).flatten(2)


def _refine(refiner: Any, first_seen: bool, text: torch.Tensor, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """text [B, T, dim] attends to what mask [B, T] shows of itself."""
    seen = mask != 0
    if first_seen:
        seen = torch.logical_or(seen, torch.arange(mask.shape[1], device=mask.device) == 0)
    hidden = key_mask(seen)
    for block in refiner.refiner_blocks:
        text = block(text, embedded, hidden)
    return text


def _attend_text(attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: None, attention_mask: torch.Tensor) -> torch.Tensor:
    """Attention of a refiner block."""
    query, key, value = _heads(attn, hidden_states, ("to_q", "to_k", "to_v"), ())
    out: torch.Tensor = attn.to_out[0](plain_attention(query, key, value, attention_mask).transpose(1, 2).flatten(2))
    return out
