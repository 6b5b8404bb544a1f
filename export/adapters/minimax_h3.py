"""MiniMax-H3 text-to-video with sound (diffusers MiniMaxH3Transformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis, Sizes
from vditc.errors import InputError
from vditc.export.adapters.hunyuan_blocks import unpatchify
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.patches import TimeFrequencies, plain_attention, replaced
from vditc.model_dir import ModelDir

Pair = tuple[torch.Tensor, torch.Tensor]
# Of text, sound and video, in the order of the sequence: which of the two timesteps they have, and their row of modulation.
TIMES, TAGS = (0, 1, 0), (1, 2, 0)
GROUP, GROUP_FRAMES = 5, 17  # latents that the VAE makes of so many frames: one of a single frame, then four of 4


def _block(name: str, prefix: str, attention: str) -> dict[str, str]:
    """Roles of the layers of one list of blocks."""
    layers = {"to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "out"}
    return {
        **{rf"{name}\.\d+\.attn\.{layer}": f"{attention}.{part}" for layer, part in layers.items()},
        rf"{name}\.\d+\.ff\.net\.0\.proj": f"{prefix}ffn.in",
        rf"{name}\.\d+\.ff\.net\.2": f"{prefix}ffn.out",
    }


class MiniMaxH3(DiffusersAdapter):
    """One sequence of text, sound and video attends to itself; the time modulates each of the three by weights of its own.

    Video and sound are denoised along two schedules, so `timestep` has two columns, as the pipeline tells them: 0 is noise, 1 is
    clean. The velocities point from noise to data. The sound is the second output: latents of the left channel, then as many of the
    right. Positions of sound and video go on where the text ends, so text has no padding: `text_tokens` is the prompt's length.

    The VAE makes 5 n + 2 latents of 17 n + 5 frames, so a clip's length is told in latents: 37 of 124 frames, 5 seconds. Keyframes,
    and references of images, videos and sounds, which become rows of the sequence with times of their own, are left out.
    """

    name: ClassVar[str] = "minimax-h3"
    description: ClassVar[str] = "MiniMax-H3 text-to-video, with sound"
    model_class: ClassVar[str] = "MiniMaxH3Transformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"token_refiner.refiner_blocks": "num_refiner_layers", "transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"768p124": (37, 768, 1344), "768p345": (102, 768, 1344)}
    outputs: ClassVar[Mapping[str, str]] = {"velocity": "hidden_states", "audio": "audio_hidden_states"}
    roles: ClassVar[Mapping[str, str]] = {
        r"proj_in": "patch_embed",
        r"audio_proj_in": "other_embed.in",
        r"context_embedder": "text_embed.in",
        r"time_embedder\.linear_1": "time_embed.in",
        r"time_embedder\.linear_2": "time_embed.out",
        **_block(r"token_refiner\.refiner_blocks", "refiner_", "refiner_attn"),
        **_block("transformer_blocks", "", "self_attn"),
        r"transformer_blocks\.\d+\.adaln_proj\.linear": "modulation",
        r"norm_out\.linear": "modulation",
        r"(audio_)?proj_out": "head",
    }

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Latents of video [B, C, F, H, W] and sound [B, audio_tokens, C], timestep [B, 2] of video (and text) and of sound, text
        [B, text_tokens, text_dim]. InputError for patches of several frames, of which the pipeline makes no positions."""
        config = source.config
        if (frames := config["patch_size"][0]) != 1:
            raise InputError(
                found=f"patches of {frames} frames",
                wanted="patches of one frame, as in every published checkpoint",
                where=str(source.transformer / "config.json"),
                fix="use a checkpoint whose patch_size starts with 1",
            )
        return (
            InputSpec("hidden_states", "float32", ("batch", self.latent_channels(source), "frames", "height", "width")),
            InputSpec("audio_hidden_states", "float32", ("batch", "audio_tokens", int(config["audio_in_channels"]))),
            InputSpec("timestep", "float32", ("batch", 2), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_dim"]))),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """124 frames of 768 x 1344: latent 37 x 48 x 84, and 207 latents of each of two sound channels, 40 to the second."""
        _, height, width = source.config["patch_size"]
        return {
            "batch": Axis(default=1, unit="clips"),
            "frames": Axis(default=37, unit="latents"),
            "height": Axis(default=48, low=height, multiple=height, unit="pixels", stride=16),
            "width": Axis(default=84, low=width, multiple=width, unit="pixels", stride=16),
            "audio_tokens": Axis(default=414, low=2, multiple=2),
            "text_tokens": Axis(default=256),
        }

    def sizes(self, source: ModelDir) -> Sizes:
        """The VAE's config tells its stride in pixels; that in frames is not alike for all latents, which `axes` knows."""
        behind_vae = super().sizes(source)
        return Sizes({**behind_vae.axes, "frames": self.axes(source)["frames"]}, behind_vae.presets)

    def latent_channels(self, source: ModelDir) -> int:
        """As many out as in."""
        return int(source.config["in_channels"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """All clips in one pass, each of text, sound and video modulated as a whole instead of row by row, heads for the rows that
        they are of, rotation by one concatenation, constant time frequencies; positions in float32, plain attention.

        Modulation, rotation and time frequencies are the same float32 operations. Positions are within 4e-6 of those that float64
        gives; softmax(q k^T) v and matrix products with other numbers of rows round differently, about 1e-6 of the output.
        """
        blocks = model.transformer_blocks
        with replaced(
            (model, "forward", functools.partial(_run, model)),
            (model, "rope", _Tables(model.rope)),
            (model, "time_proj", TimeFrequencies(model.time_proj)),
            *((block, "forward", functools.partial(_run_block, block)) for block in blocks),
            *((block.attn, "processor", _attend) for block in (*model.token_refiner.refiner_blocks, *blocks)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity of the video [B, C, F, H, W]."""
        return self.forward_all(model, feeds)[0]

    def forward_all(self, model: Any, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """Predicted velocities of video [B, C, F, H, W] and sound [B, audio_tokens, C]."""
        if isinstance(model.rope, _Tables):
            video, audio = model(**feeds)
            return video, audio
        latents, patch = feeds["hidden_states"], model.config.patch_size
        sizes = latents.shape[2:]
        rows, audio, text = _patchify(latents, patch), feeds["audio_hidden_states"], feeds["encoder_hidden_states"]
        device, counts = latents.device, [text.shape[1], audio.shape[1], rows.shape[1]]
        times, tags = (torch.tensor(t, device=device).repeat_interleave(torch.tensor(counts, device=device)) for t in (TIMES, TAGS))
        text_at, audio_at, video_at = torch.split(torch.arange(sum(counts), device=device), counts)
        clips = [  # the class gives all clips of a batch the same times
            model(
                hidden_states=rows[i : i + 1],
                audio_hidden_states=audio[i : i + 1],
                encoder_hidden_states=text[i : i + 1],
                timestep=timestep,
                timestep_indices=times,
                token_tags=tags,
                position_ids=_positions(counts[0], counts[1], sizes, patch, device, torch.float64),
                video_indices=video_at,
                audio_indices=audio_at,
                text_indices=text_at,
                return_dict=False,
            )
            for i, timestep in enumerate(feeds["timestep"])
        ]
        video, audio = (torch.cat(parts) for parts in zip(*clips, strict=True))
        return unpatchify(video, _grid(sizes, patch), patch), audio


def _grid(sizes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Tokens along frames, height and width."""
    return tuple(size // p for size, p in zip(sizes, patch, strict=True))


def _patchify(latents: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """latents [B, C, F, H, W] -> [B, F H' W', C and a patch of one frame]."""
    _, height, width = patch
    blocks = torch.unflatten(torch.unflatten(latents, 4, (-1, width)), 3, (-1, height))
    return blocks.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def _positions(
    text: int, audio: int, sizes: Sequence[int], patch: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Time, row and column [tokens, 3] of text, sound and video of `sizes` latents.

    Text counts the time from 0, sound and video go on from there, sound by 1 a latent and video by 5/3 a frame. Rows and columns lie
    around 16, and a square clip's from 0 to 32; those of the left and the right channel are the first and the last column.
    """

    def count(to: int) -> torch.Tensor:
        return torch.arange(to, dtype=dtype, device=device)

    def number(size: int) -> torch.Tensor:
        return torch.full((1,), size, dtype=dtype, device=device)

    frames, height, width = _grid(sizes, patch)
    side = torch.sqrt(number(sizes[1]) * number(sizes[2]))
    # Whole numbers as long as can be, and one division: float32 is then as good as the float64 that the pipeline rounds to it.
    rows, columns = (16 + 16 * p * (2 * count(n) - number(n)) / side for n, p in ((height, patch[1]), (width, patch[2])))
    group = torch.floor(count(frames) / GROUP)
    before = GROUP_FRAMES * group + (4 * (count(frames) - GROUP * group) - 3).clamp(min=0)  # frames of the latents before each
    moments = (5 * before + 3 * number(text)) / 3
    channel, half = count(audio), number(audio // 2)
    right = channel >= half
    sound = [
        number(text) + torch.where(right, channel - half, channel),
        torch.zeros_like(channel),
        torch.where(right, columns[-1:], columns[:1]),
    ]
    words = [count(text), torch.zeros_like(count(text)), torch.zeros_like(count(text))]
    video = [
        at.expand(frames, height, width).flatten() for at in (moments.reshape(-1, 1, 1), rows.reshape(1, -1, 1), columns.reshape(1, 1, -1))
    ]
    return torch.stack([torch.cat(axis) for axis in zip(words, sound, video, strict=True)], 1)


class _Tables(torch.nn.Module):
    """Cosines and sines (cos, sin), each [tokens, 3 frequencies], of positions [tokens, 3]; the class makes both twice as wide."""

    frequencies: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.register_buffer("frequencies", real.inv_freq, persistent=False)

    def forward(self, positions: torch.Tensor) -> Pair:
        """See the class."""
        angles = (positions.unsqueeze(-1) * self.frequencies).flatten(1)
        return torch.cos(angles), torch.sin(angles)


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    audio_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
) -> Pair:
    """The whole model; see `MiniMaxH3.inputs`."""
    patch, sizes = model.config.patch_size, hidden_states.shape[2:]
    text, audio = encoder_hidden_states.shape[1], audio_hidden_states.shape[1]
    embedded = torch.nn.functional.silu(model.time_embedder(model.time_proj(timestep.flatten())))
    embedded = torch.unflatten(embedded, 0, (-1, 2))
    rotary = model.rope(_positions(text, audio, sizes, patch, hidden_states.device))
    streams = (
        model.token_refiner(model.context_embedder(encoder_hidden_states)),
        model.audio_proj_in(audio_hidden_states),
        model.proj_in(_patchify(hidden_states, patch)),
    )
    for block in model.transformer_blocks:
        streams = block(streams, embedded, rotary)
    # Nobody reads the text that comes out. It goes through the norm so that the last block is like the others, which export stamps out.
    normed = _apart(model.norm_out.norm(torch.cat(streams, 1)), text, audio)
    shift, scale = model.norm_out.linear(embedded).chunk(2, 2)
    sound, video = (normed[i] * (1.0 + scale[:, t : t + 1]) + shift[:, t : t + 1] for i, t in ((1, TIMES[1]), (2, TIMES[2])))
    return unpatchify(model.proj_out(video), _grid(sizes, patch), patch), model.audio_proj_out(sound)


def _apart(x: torch.Tensor, text: int, audio: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text, sound and video of the sequence x [B, tokens, dim]."""
    return x[:, :text], x[:, text : text + audio], x[:, text + audio :]


def _run_block(block: Any, streams: tuple[torch.Tensor, ...], embedded: torch.Tensor, rotary: Pair) -> tuple[torch.Tensor, ...]:
    """streams: text, sound and video, each [B, its tokens, dim]; embedded [B, 2, dim]: both times, activated."""
    text, audio = streams[0].shape[1], streams[1].shape[1]
    table = torch.unflatten(block.adaln_proj.linear(embedded), 2, (len(TAGS), 6, -1))
    # Each is [B, 1, dim]: shift, scale and gate of attention, then of feed-forward.
    parts = [torch.split(table[:, time, tag], 1, 1) for time, tag in zip(TIMES, TAGS, strict=True)]
    for i, norm, layer in ((0, block.norm1, lambda x: block.attn(x, rotary)), (3, block.norm2, block.ff)):
        given = torch.cat([norm(x) * (1.0 + p[i + 1]) + p[i] for x, p in zip(streams, parts, strict=True)], 1)
        streams = tuple(x + p[i + 2] * y for x, p, y in zip(streams, parts, _apart(layer(given), text, audio), strict=True))
    return streams


def _attend(attn: Any, hidden_states: torch.Tensor, rotary_emb: Pair | None = None, attention_mask: None = None) -> torch.Tensor:
    """hidden_states [B, tokens, dim] attends to itself."""
    query, key, value = (
        torch.unflatten(layer(hidden_states), 2, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    query, key = attn.norm_q(query), attn.norm_k(key)
    if rotary_emb is not None:
        query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
    out: torch.Tensor = attn.to_out[0](plain_attention(query, key, value).transpose(1, 2).flatten(2))
    return out


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first channels of x [B, heads, tokens, head_dim], in halves (a, b) as wide as cos and sin, and keep the rest."""
    half = cos.shape[1]
    a, b = x[..., :half], x[..., half : 2 * half]
    rest = [x[..., 2 * half :]] if x.shape[3] > 2 * half else []
    return torch.cat([a * cos - b * sin, b * cos + a * sin, *rest], -1)
