"""LTX-2, 2.3 and 2.5: video and its sound (diffusers LTX2VideoTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.errors import InputError
from vditc.export.adapters.ltx2_blocks import RotaryTables, Stream, attend, run_block
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import TimeFrequencies, replaced
from vditc.model_dir import ModelDir

MASKED = -10000.0  # added to scores of hidden text: exp is 0, and float16 holds it


class Ltx2(DiffusersAdapter):
    """Two streams, video and audio, each with attention to itself and to the text, and with attention to one another.

    Every frame has its own `timestep`, 0 for one that is given; `sigma` is the one of the audio and of what a clip has once.
    The clip's sound is the second output, `audio` [B, audio_tokens, C]. Guidance by skipped attention or isolated streams,
    reference tokens and keyframe slots are left out.
    """

    name: ClassVar[str] = "ltx-2"
    description: ClassVar[str] = "LTX-2 text-to-video and image-to-video, with sound"
    model_class: ClassVar[str] = "LTX2VideoTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"512p121": (121, 512, 768), "1024p121": (121, 1024, 1536)}
    outputs: ClassVar[Mapping[str, str]] = {"velocity": "hidden_states", "audio": "audio_hidden_states"}
    roles: ClassVar[Mapping[str, str]] = {
        r"proj_in": "patch_embed",
        r"audio_proj_in": "other_embed.in",
        r"(audio_)?caption_projection\.linear_1": "text_embed.in",
        r"(audio_)?caption_projection\.linear_2": "text_embed.out",
        r"\w+\.emb\.timestep_embedder\.linear_1": "time_embed.in",
        r"\w+\.emb\.timestep_embedder\.linear_2": "time_embed.out",
        r"(time_embed|audio_time_embed|av_cross_attn_\w+|(audio_)?prompt_adaln)\.linear": "modulation",
        **{
            rf"transformer_blocks\.\d+\.{module}\.{layer}": f"{role}.{part}"
            for module, role in {
                "attn1": "self_attn",
                "attn2": "cross_attn",
                r"(audio_attn[12]|audio_to_video_attn|video_to_audio_attn)": "audio_attn",
            }.items()
            for layer, part in {"to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "out", "to_gate_logits": "gate"}.items()
        },
        r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
        r"transformer_blocks\.\d+\.audio_ff\.net\.0\.proj": "audio_ffn.in",
        r"transformer_blocks\.\d+\.audio_ff\.net\.2": "audio_ffn.out",
        r"(audio_)?proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {
        **block_frames(cross=r"attn2\.to_(q|out\.0)"),
        **frames_first(
            "proj_in",
            "proj_out",
            r"transformer_blocks\.\d+\.(attn[12]|audio_to_video_attn)\.to_gate_logits",
            r"transformer_blocks\.\d+\.audio_to_video_attn\.to_(q|out\.0)",
            r"transformer_blocks\.\d+\.video_to_audio_attn\.to_(k|v)",
        ),
    }

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Latents of video [B, C, F, H, W] and audio [B, A, C], text for each [B, T, D], timestep [B, F], sigma [B], mask [B, T], fps."""
        config = source.config
        if any(config.get(key, 1) != 1 for key in ("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t")):
            raise InputError(
                found="patches of several latents",
                wanted="patch sizes of 1, as in every published checkpoint",
                where=str(source.transformer / "config.json"),
                fix="use a checkpoint whose tokens are single latents",
            )
        projected = config.get("use_prompt_embeddings", True)
        text, audio_text = (
            config["caption_channels" if projected else key] for key in ("cross_attention_dim", "audio_cross_attention_dim")
        )
        return (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("audio_hidden_states", "float32", ("batch", "audio_tokens", int(config["audio_in_channels"]))),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(text))),
            InputSpec("audio_encoder_hidden_states", "float32", ("batch", "text_tokens", int(audio_text))),
            InputSpec("timestep", "float32", ("batch", "frames"), "timestep"),
            InputSpec("sigma", "float32", ("batch",), "timestep"),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
            InputSpec("fps", "float32", (1,), 24.0),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """121 frames of 512 x 768: latent 16 x 16 x 24, and 126 audio latents, 25 to the second."""
        frames, height, width = source.config.get("vae_scale_factors", (8, 32, 32))
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=16, unit="frames", stride=frames, causal=True),
            "height": Axis(default=16, unit="pixels", stride=height),
            "width": Axis(default=24, unit="pixels", stride=width),
            "audio_tokens": Axis(default=126),
            "text_tokens": Axis(default=1024),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """As many out as in, unless config.json says otherwise."""
        return int(source.config.get("out_channels") or source.config["in_channels"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Modulation once for each frame instead of each token; rotary tables made for each axis once; plain attention.

        All float32 operations are the same, except those of softmax(q k^T) v and of matrix products with fewer rows. Frequencies
        that diffusers computes in float64 are constants.
        """
        ropes = {name: RotaryTables(getattr(model, name)) for name in ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope")}
        embeddings = [m for m in model.modules() if type(m).__name__ == "PixArtAlphaCombinedTimestepSizeEmbeddings"]
        attentions = [m for m in model.modules() if type(m).__name__ == "LTX2Attention"]
        with replaced(
            (model, "forward", functools.partial(_run, model, ropes)),
            *((m, "time_proj", TimeFrequencies(m.time_proj)) for m in embeddings),
            *((block, "forward", functools.partial(run_block, block)) for block in model.transformer_blocks),
            *((attn, "forward", functools.partial(attend, attn)) for attn in attentions),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity of the video [B, C, F, H, W]."""
        return self.forward_all(model, feeds)[0]

    def forward_all(self, model: Any, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """Predicted velocities of video [B, C, F, H, W] and audio [B, A, C]."""
        frames, height, width = feeds["hidden_states"].shape[2:]
        sigma, mask = feeds["sigma"], feeds["encoder_attention_mask"]
        video, audio = model(
            hidden_states=feeds["hidden_states"].flatten(2).transpose(1, 2),
            audio_hidden_states=feeds["audio_hidden_states"],
            encoder_hidden_states=feeds["encoder_hidden_states"],
            audio_encoder_hidden_states=feeds["audio_encoder_hidden_states"],
            timestep=feeds["timestep"].unsqueeze(-1).expand(-1, -1, height * width).flatten(1),
            audio_timestep=sigma,
            sigma=sigma,
            encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            fps=feeds["fps"],
            audio_num_frames=feeds["audio_hidden_states"].shape[1],
            use_cross_timestep=True,
            return_dict=False,
        )
        return video.transpose(1, 2).unflatten(2, (frames, height, width)), audio


def _middles(size: int, step: int, shift: int = 0) -> torch.Tensor:
    """Middles of `size` latents in frames, pixels or spectrogram rows; all ends are moved by `shift`, but not below 0."""
    start = torch.arange(size, dtype=torch.float32)
    first, last = ((at * step + shift).clamp(min=0) for at in (start, start + 1))
    return (first + last) / 2


def _run(
    model: Any,
    ropes: Mapping[str, RotaryTables],
    *,
    hidden_states: torch.Tensor,
    audio_hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    audio_encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    sigma: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    num_frames: int,
    height: int,
    width: int,
    fps: torch.Tensor,
    audio_num_frames: int,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole model, with timestep [B, tokens] alike in all tokens of a frame, audio and text at the time sigma [B]."""
    batch, config = hidden_states.shape[0], model.config
    mask = ((1 - encoder_attention_mask.to(torch.float32)) * MASKED)[:, None, None]

    def embed(module: Any, times: torch.Tensor, *axes: int) -> list[torch.Tensor]:
        return [torch.unflatten(t, 0, (batch, *axes)) for t in module(times, batch_size=batch, hidden_dtype=torch.float32)]

    frame_times = torch.unflatten(timestep, 1, (num_frames, -1))[:, :, 0].flatten()
    time, embedded = embed(model.time_embed, frame_times, num_frames, 1)
    audio_time, audio_embedded = embed(model.audio_time_embed, sigma, 1)
    gate_times = sigma * (config.cross_attn_timestep_scale_multiplier / config.timestep_scale_multiplier)
    adaln = model.prompt_modulation and config.use_prompt_adaln_single
    seconds = _middles(num_frames, model.rope.scale_factors[0], model.rope.causal_offset - model.rope.scale_factors[0]) / fps
    rows, columns = (_middles(n, step) for n, step in zip((height, width), model.rope.scale_factors[1:], strict=True))
    sound = model.audio_rope
    audio_seconds = _middles(audio_num_frames, sound.scale_factors[0], sound.causal_offset - sound.scale_factors[0])
    audio_seconds = audio_seconds * sound.hop_length / sound.sampling_rate
    text, audio_text = encoder_hidden_states, audio_encoder_hidden_states
    if config.use_prompt_embeddings:
        text, audio_text = model.caption_projection(text), model.audio_caption_projection(audio_text)
    video_stream = Stream(
        text=text,
        time=time,
        text_time=embed(model.prompt_adaln, sigma, 1)[0] if adaln else None,
        cross_time=embed(model.av_cross_attn_video_scale_shift, sigma, 1, 1)[0],
        cross_gate=embed(model.av_cross_attn_video_a2v_gate, gate_times, 1, 1)[0],
        rotary=ropes["rope"](seconds, rows, columns),
        cross_rotary=ropes["cross_attn_rope"](seconds[:, None].expand(-1, height * width).flatten()),
    )
    audio_stream = Stream(
        text=audio_text,
        time=audio_time,
        text_time=embed(model.audio_prompt_adaln, sigma, 1)[0] if adaln else None,
        cross_time=embed(model.av_cross_attn_audio_scale_shift, sigma, 1)[0],
        cross_gate=embed(model.av_cross_attn_audio_v2a_gate, gate_times, 1)[0],
        rotary=ropes["audio_rope"](audio_seconds),
        cross_rotary=ropes["cross_attn_audio_rope"](audio_seconds),
    )
    hidden = torch.unflatten(model.proj_in(hidden_states), 1, (num_frames, height * width))
    audio = model.audio_proj_in(audio_hidden_states)
    for block in model.transformer_blocks:
        hidden, audio = block(hidden, audio, video_stream, audio_stream, mask)
    shift, scale = (model.scale_shift_table + embedded.unsqueeze(-2)).unbind(-2)
    audio_shift, audio_scale = (model.audio_scale_shift_table + audio_embedded.unsqueeze(-2)).unbind(-2)
    velocity = model.proj_out((model.norm_out(hidden) * (1 + scale) + shift).flatten(1, 2))
    return velocity, model.audio_proj_out(model.audio_norm_out(audio) * (1 + audio_scale) + audio_shift)
