"""SkyReels-V2, text-to-video, image-to-video and diffusion forcing (diffusers SkyReelsV2Transformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.correction import FrameOrder
from vditc.export.adapters.wan import Wan
from vditc.export.adapters.wan_blocks import RotaryTables, finish, frame_tokens, grid_of, latent_axes, other_json, wan_changes
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis

# Added to the scores of frames that must not be seen: exp() of it is 0, and float16 can hold it.
HIDDEN = -3e4


class SkyReelsV2(Wan):
    """Wan's blocks. Diffusion-forcing models take a timestep for every frame, and some the frame rate.

    They are told by the pipeline that model_index.json names. diffusers lets their pipeline hide later groups of frames from
    earlier ones (`causal_block_size`); here config.json's `num_frame_per_block` alone says so, and no published model's does.
    """

    name: ClassVar[str] = "skyreels-v2"
    description: ClassVar[str] = "SkyReels-V2, text-to-video, image-to-video and diffusion forcing"
    model_class: ClassVar[str] = "SkyReelsV2Transformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"540p97": (97, 544, 960), "720p121": (121, 720, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        **Wan.roles,
        r"fps_projection\.net\.0\.proj": "other_embed.in",
        r"fps_projection\.net\.2": "other_embed.out",
    }

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """The frame rates are an embedding table."""
        return weight != "fps_embedding.weight" and super().is_layer(source, weight)

    def time_per_frame(self, source: ModelDir) -> bool:
        """Whether this is a diffusion-forcing model."""
        return "DiffusionForcing" in str(other_json(source, "model_index.json").get("_class_name"))

    def frame_order(self, source: ModelDir, layer: str) -> FrameOrder | None:
        """None for a model that is told the frame rate: diffusers' class runs clips of a batch one by one."""
        return None if source.config.get("inject_sample_info") else super().frame_order(source, layer)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Wan's, and fps [B] with `inject_sample_info`: 0 for 16 frames a second, 1 for 24."""
        fps = (InputSpec("fps", "int64", ("batch",), 1.0),) if source.config.get("inject_sample_info") else ()
        return (*super().inputs(source), *fps)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """540p, 97 frames: latent 25 x 68 x 120."""
        axes = {**super().axes(source), **latent_axes(source, 97, 544, 960)}
        group = int(source.config.get("num_frame_per_block", 1))
        if group > 1:
            frames = axes["frames"]
            size = frames.default // group * group
            axes["frames"] = Axis(
                default=size, low=group, multiple=group, high=frames.high, unit="frames", stride=frames.stride, causal=True
            )
        return axes

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """As Wan's; sines of the timestep in float32 instead of float64 (about 1e-6 of the output); the group mask is added.

        With the frame rate, clips of a batch no longer get each other's (diffusers' class takes one clip then).
        """
        changes = wan_changes(model, "blocks", times=_TimeFrequencies)
        with replaced(*changes, (model, "forward", functools.partial(_run, model))):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        if isinstance(model.rope, RotaryTables):
            return model(**feeds)
        forcing = feeds["timestep"].ndim == 2
        if "fps" not in feeds:
            return model(**feeds, enable_diffusion_forcing=forcing, return_dict=False)[0]
        clips = [{n: x[i : i + 1] for n, x in feeds.items()} for i in range(len(feeds["fps"]))]
        return torch.cat([model(**{**c, "fps": c["fps"].tolist()}, enable_diffusion_forcing=forcing, return_dict=False)[0] for c in clips])

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Frames' own times are told by their shape; frames a second, a list in the class, are a tensor."""
        feeds = dict(call)
        if feeds.pop("enable_diffusion_forcing", False) != (call["timestep"].ndim == 2):
            raise self.no_form(f"timestep of {call['timestep'].ndim} axes", "enable_diffusion_forcing with, and only with, times of frames")
        if "fps" in feeds:
            feeds["fps"] = torch.as_tensor(feeds["fps"])
        return feeds


class _TimeFrequencies(torch.nn.Module):
    """Cosines and sines [..., channels] of timesteps [...]."""

    frequencies: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        exponent = torch.arange(real.num_channels // 2, dtype=torch.float64) / (real.num_channels / 2.0)
        self.register_buffer("frequencies", (1.0 / 10000**exponent).to(torch.float32), persistent=False)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        angles = times.unsqueeze(-1) * self.frequencies
        return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


def _run(
    model: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_hidden_states_image: torch.Tensor | None = None,
    fps: torch.Tensor | None = None,
) -> torch.Tensor:
    """The model's forward pass, frame by frame; a timestep [B] is that of all frames."""
    times, modulation, text, image = model.condition_embedder(timestep, encoder_hidden_states, encoder_hidden_states_image)
    modulation = torch.unflatten(modulation, -1, (6, -1))
    if fps is not None:
        rate = torch.unflatten(model.fps_projection(model.fps_embedding(fps)), 1, (6, -1))
        modulation = modulation + (rate.unsqueeze(1) if timestep.ndim == 2 else rate)
    if timestep.ndim == 1:
        times, modulation = times.unsqueeze(1), modulation.unsqueeze(1)
    context = text if image is None else torch.cat([image, text], 1)
    rotary = model.rope(hidden_states)
    group = model.config.num_frame_per_block
    mask = () if group == 1 else (_group_mask(group, *grid_of(hidden_states, model.config.patch_size)),)
    hidden = frame_tokens(model.patch_embedding, hidden_states)
    for block in model.blocks:
        hidden = block(hidden, context, modulation, rotary, *mask)
    return finish(model, hidden, times, hidden_states)


def _group_mask(group: int, frames: int, height: int, width: int) -> torch.Tensor:
    """[tokens, tokens]: 0 where a frame sees another of its group or of an earlier one."""
    groups = torch.div(torch.arange(frames), group, rounding_mode="floor")
    groups = groups.unsqueeze(1).expand(-1, height * width).flatten()
    return torch.where(groups <= groups.unsqueeze(1), 0.0, HIDDEN)
