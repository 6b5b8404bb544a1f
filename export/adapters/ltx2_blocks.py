"""What LTX-2 is made of: rotary tables of two kinds of layout, blocks of two streams, attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from vditc.export.patches import plain_attention, rotate_halves, rotate_neighbours

Tables = tuple[torch.Tensor, torch.Tensor]  # cos, sin


class RotaryTables(torch.nn.Module):
    """Rotary tables (cos, sin) of a grid, from the coordinates of its axes; see `_rotate`.

    [tokens, dim] for neighbours ("interleaved"), [heads, tokens, head_dim] for halves ("split").
    """

    frequencies: torch.Tensor
    signs: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.dim, self.heads = real.dim, real.num_attention_heads if real.rope_type == "split" else 0
        self.bases = (real.base_num_frames, real.base_height, real.base_width)
        self.theta, self.precise = real.theta, real.double_precision
        for axes in (1, 3):  # the cross-attention of video reads frames alone
            dtype = torch.float64 if real.double_precision else torch.float32
            exponents = torch.linspace(0.0, 1.0, real.dim // (2 * axes), dtype=dtype)
            self.register_buffer(f"frequencies{axes}", (real.theta**exponents * torch.pi / 2.0).to(torch.float32), persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), persistent=False)

    def forward(self, *coordinates: torch.Tensor) -> Tables:
        """Coordinates along one axis or three."""
        sizes = [at.shape[0] for at in coordinates]
        tables = []
        for i, (at, base) in enumerate(zip(coordinates, self.bases, strict=False)):
            angles = (at.unsqueeze(-1) / base * 2 - 1) * self.get_buffer(f"frequencies{len(sizes)}")
            shape = [2, *(1 for _ in sizes), angles.shape[1]]
            shape[i + 1] = sizes[i]
            tables.append(torch.stack([torch.cos(angles), torch.sin(angles)]).reshape(shape).expand(2, *sizes, -1))
        half = torch.stack(tables, -1).flatten(1, len(sizes)).flatten(2)  # [2, tokens, dim / 2], axes neighbours; fewer if not whole
        if rest := self.dim // 2 - half.shape[-1]:  # channels in front that are not rotated
            still = torch.tensor([1.0, 0.0]).reshape(2, 1, 1).expand(2, half.shape[1], rest)
            half = torch.cat([still, half], -1)
        if self.heads:
            per_head = torch.unflatten(half, 2, (self.heads, 1, -1)) * self.signs[:, None, None, :, None]
            cos, sin = per_head.flatten(3).transpose(1, 2)
        else:
            cos, sin = (half.unsqueeze(-1) * self.signs[:, None, None]).flatten(2)
        return cos, sin


class Stream(NamedTuple):
    """What the blocks need of one stream; times are [B, F, 1, n dim] for video and [B, 1, n dim] for audio."""

    text: torch.Tensor  # [B, T, dim]
    time: torch.Tensor
    text_time: torch.Tensor | None  # [B, 1, 2 dim]
    cross_time: torch.Tensor  # of the attention between the streams
    cross_gate: torch.Tensor
    rotary: Tables
    cross_rotary: Tables


def modulate(table: torch.Tensor, time: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The rows of table [n, dim], plus time [..., n dim] where there is one: n tensors [..., dim]."""
    if time is None:
        return table.unbind(0)
    return (table + torch.unflatten(time, -1, (table.shape[0], -1))).unbind(-2)


def run_block(
    block: Any, hidden: torch.Tensor, audio: torch.Tensor, video: Stream, sound: Stream, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [B, F, tokens of a frame, dim], audio [B, A, audio_dim], mask [B, 1, 1, T] of the text."""
    own = modulate(block.scale_shift_table, video.time)
    audio_own = modulate(block.audio_scale_shift_table, sound.time)
    hidden = hidden + block.attn1(block.norm1(hidden) * (1 + own[1]) + own[0], rotary=(video.rotary, video.rotary)) * own[2]
    given = block.audio_norm1(audio) * (1 + audio_own[1]) + audio_own[0]
    audio = audio + block.audio_attn1(given, rotary=(sound.rotary, sound.rotary)) * audio_own[2]

    text, audio_text = video.text, sound.text
    if block.cross_attn_adaln:
        shift, scale = modulate(block.prompt_scale_shift_table, video.text_time)
        audio_shift, audio_scale = modulate(block.audio_prompt_scale_shift_table, sound.text_time)
        text, audio_text = text * (1 + scale) + shift, audio_text * (1 + audio_scale) + audio_shift
    hidden = hidden + _read_text(block.attn2, block.norm2(hidden), text, mask, own[6:])
    audio = audio + _read_text(block.audio_attn2, block.audio_norm2(audio), audio_text, mask, audio_own[6:])

    table, audio_table = block.video_a2v_cross_attn_scale_shift_table, block.audio_a2v_cross_attn_scale_shift_table
    cross, audio_cross = modulate(table[:4], video.cross_time), modulate(audio_table[:4], sound.cross_time)
    (gate,), (audio_gate,) = modulate(table[4:], video.cross_gate), modulate(audio_table[4:], sound.cross_gate)
    seen, heard = block.audio_to_video_norm(hidden), block.video_to_audio_norm(audio)
    to_video = seen * (1 + cross[0]) + cross[1], heard * (1 + audio_cross[0]) + audio_cross[1]
    hidden = hidden + gate * block.audio_to_video_attn(*to_video, rotary=(video.cross_rotary, sound.cross_rotary))
    to_audio = heard * (1 + audio_cross[2]) + audio_cross[3], seen * (1 + cross[2]) + cross[3]
    audio = audio + audio_gate * block.video_to_audio_attn(*to_audio, rotary=(sound.cross_rotary, video.cross_rotary))

    hidden = hidden + block.ff(block.norm3(hidden) * (1 + own[4]) + own[3]) * own[5]
    audio = audio + block.audio_ff(block.audio_norm3(audio) * (1 + audio_own[4]) + audio_own[3]) * audio_own[5]
    return hidden, audio


def _read_text(attn: Any, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, modulation: tuple[torch.Tensor, ...]) -> Any:
    """Attention to the text; modulation is (shift, scale, gate) or empty."""
    if not modulation:
        return attn(x, text, mask)
    shift, scale, gate = modulation
    return attn(x * (1 + scale) + shift, text, mask) * gate


def _rotate(attn: Any, x: torch.Tensor, table: Tables | None) -> torch.Tensor:
    """x [B, tokens, dim] -> [B, heads, tokens, head_dim], rotated."""
    split = attn.rope_type == "split"
    if table is not None and not split:
        x = rotate_neighbours(x, *table)
    heads = torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2)
    return rotate_halves(heads, *table) if table is not None and split else heads


def attend(
    attn: Any,
    hidden: torch.Tensor,
    memory: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    rotary: tuple[Tables, Tables] | tuple[None, None] = (None, None),
) -> torch.Tensor:
    """hidden [B, tokens, dim] or [B, F, tokens of a frame, dim] attends to itself or to memory, of either form."""
    given = hidden.flatten(1, -2)
    other = given if memory is None else memory.flatten(1, -2)
    query = _rotate(attn, attn.norm_q(attn.to_q(given)), rotary[0])
    key = _rotate(attn, attn.norm_k(attn.to_k(other)), rotary[1])
    attended = plain_attention(query, key, _rotate(attn, attn.to_v(other), None), mask).transpose(1, 2)
    if attn.to_gate_logits is not None:
        attended = attended * (2.0 * torch.sigmoid(attn.to_gate_logits(given))).unsqueeze(-1)
    out: torch.Tensor = attn.to_out[0](attended.flatten(2)).reshape(hidden.shape)
    return out
