"""Wan-VACE: video made and edited under control clips (diffusers WanVACETransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.correction import FrameOrder
from vditc.export.adapters.wan import Wan
from vditc.export.adapters.wan_blocks import RotaryTables, attend, block_roles, unpack, wan_changes
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir


class WanVACE(Wan):
    """Wan, and a second list of blocks over the control clip, each of which adds a hint behind one block of the first list."""

    name: ClassVar[str] = "wan-vace"
    description: ClassVar[str] = "Wan-VACE, video under control clips"
    model_class: ClassVar[str] = "WanVACETransformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p81": (81, 480, 832), "720p81": (81, 720, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        **Wan.roles,
        **block_roles("vace_blocks"),
        r"vace_patch_embedding": "patch_embed",
        r"vace_blocks\.0\.proj_in": "other_embed.in",
        r"vace_blocks\.\d+\.proj_out": "other_embed.out",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {
        **Wan.frame_orders,
        **block_frames("vace_blocks", feed_forward="ffn"),
        **frames_first(r"vace_blocks\.\d+\.proj_(in|out)"),
    }

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """The control blocks, then the blocks between one hint and the next; () when hints come at uneven distances."""
        period = _period(config)
        if period is None:
            return ()
        hints = len(config["vace_layers"])
        return Loop(modules={"vace_blocks": 1}, count=hints), Loop(modules={"blocks": period}, count=hints)

    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """As many hints and blocks; both loops always have the same number."""
        period = _period(config)
        assert period is not None and counts[0] == counts[1]
        return {**config, "num_layers": period * counts[0], "vace_layers": [period * k for k in range(counts[0])]}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Wan's, control_hidden_states [B, vace_in_channels, F, H, W] and control_hidden_states_scale [hints].

        A reference image is a frame before the others, in the latents and in the control clip.
        """
        config = source.config
        dims = ("batch", int(config["vace_in_channels"]), "frames", "height", "width")
        return (
            *super().inputs(source),
            InputSpec("control_hidden_states", "float32", dims),
            InputSpec("control_hidden_states_scale", "float32", (len(config["vace_layers"]),)),
        )

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """As Wan's; each control block scales its own hint."""
        with replaced(
            *wan_changes(model, "blocks"),
            *((a, "processor", attend) for b in model.vace_blocks for a in (b.attn1, b.attn2)),
            *((b, "forward", functools.partial(_control, b.forward, k)) for k, b in enumerate(model.vace_blocks)),
            (model, "forward", functools.partial(_run, model)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        return model(**feeds) if isinstance(model.rope, RotaryTables) else model(**feeds, return_dict=False)[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Without scales all are 1."""
        return {"control_hidden_states_scale": torch.ones(len(config["vace_layers"])), **super().fed_by(call, config)}


def _period(config: Mapping[str, Any]) -> int | None:
    """Blocks from one hint to the next; None when they differ."""
    layers, count = list(config["vace_layers"]), int(config["num_layers"])
    period, rest = divmod(count, len(layers))
    return period if not rest and layers == list(range(0, count, period)) else None


def _control(plain: Any, k: int, scales: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Control block k: its scaled hint, and the control tokens for the next."""
    hint, control = plain(*values)
    return hint * scales[k], control


def _run(
    model: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    control_hidden_states: torch.Tensor,
    control_hidden_states_scale: torch.Tensor,
    encoder_hidden_states_image: torch.Tensor | None = None,
) -> torch.Tensor:
    """The model's forward pass."""
    times, modulation, text, image = model.condition_embedder(timestep, encoder_hidden_states, encoder_hidden_states_image)
    modulation = torch.unflatten(modulation, 1, (6, -1))
    context = text if image is None else torch.cat([image, text], 1)
    rotary = model.rope(hidden_states)
    hidden = model.patch_embedding(hidden_states).flatten(2).transpose(1, 2)
    control = model.vace_patch_embedding(control_hidden_states).flatten(2).transpose(1, 2)
    hints = []
    for block in model.vace_blocks:
        hint, control = block(control_hidden_states_scale, hidden, context, control, modulation, rotary)
        hints.append(hint)
    for i, block in enumerate(model.blocks):
        hidden = block(hidden, context, modulation, rotary)
        if i in model.config.vace_layers:
            hidden = hidden + hints[model.config.vace_layers.index(i)]
    shift, scale = torch.split(model.scale_shift_table + times.unsqueeze(1), 1, 1)
    tokens = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
    return unpack(tokens, hidden_states, model.config.patch_size)
