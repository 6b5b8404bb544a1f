"""Wan 2.1 and 2.2, text-to-video and image-to-video (diffusers WanTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.correction import FrameOrder
from vditc.export.adapters.wan_blocks import (
    EMBEDDER_ROLES,
    IMAGE_TOKENS,
    TEXT_TOKENS,
    RotaryTables,
    block_roles,
    finish,
    frame_tokens,
    grid_of,
    latent_axes,
    other_json,
    wan_changes,
)
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis


class Wan(DiffusersAdapter):
    """Blocks of self-attention, cross-attention and feed-forward, modulated by the timestep; 3-D rotary positions.

    Image-to-video models see constant channels behind the latents (Wan 2.1, 2.2 A14B: a mask of 4 channels and the encoded first
    frame), and Wan 2.1's also tokens of an image encoder. Wan 2.2 A14B is two such transformers. Wan 2.2 TI2V-5B, whose
    model_index.json says `expand_timesteps`, takes a timestep for every frame: 0 for a first frame that is given.
    """

    name: ClassVar[str] = "wan"
    description: ClassVar[str] = "Wan 2.1 and 2.2, text-to-video and image-to-video"
    model_class: ClassVar[str] = "WanTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "480p81": (81, 480, 832),
        "720p81": (81, 720, 1280),
        "704p121": (121, 704, 1280),
    }
    roles: ClassVar[Mapping[str, str]] = {**EMBEDDER_ROLES, **block_roles()}
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {**block_frames("blocks", feed_forward="ffn"), **frames_first("proj_out")}

    def time_per_frame(self, source: ModelDir) -> bool:
        """Whether `timestep` is [batch, frames]."""
        return bool(other_json(source, "model_index.json").get("expand_timesteps"))

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B] or [B, F], encoder_hidden_states [B, text_tokens, text_dim].

        With an image encoder also encoder_hidden_states_image [B, image_tokens, image_dim]; then the text has 512 tokens, the
        number by which the class tells text from image. A first and a last frame's tokens are one behind the other.
        """
        config = source.config
        image, positions = config.get("image_dim"), config.get("pos_embed_seq_len")
        text = TEXT_TOKENS if config.get("added_kv_proj_dim") else "text_tokens"
        specs = [
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch", "frames") if self.time_per_frame(source) else ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", text, int(config["text_dim"]))),
        ]
        if image:
            tokens = int(positions) if positions else "image_tokens"
            specs.append(InputSpec("encoder_hidden_states_image", "float32", ("batch", tokens, int(image))))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """480p, 81 frames: latent 21 x 60 x 104. TI2V-5B 704p, 121 frames: 31 x 44 x 80."""
        text = 8 if source.sampling and source.sampling.semantics == "digits" else TEXT_TOKENS
        clip = (121, 704, 1280) if self.time_per_frame(source) else (81, 480, 832)
        axes = {**latent_axes(source, *clip), "text_tokens": Axis(default=text), "image_tokens": Axis(default=IMAGE_TOKENS)}
        named = {d for spec in self.inputs(source) for d in spec.dims}
        return {name: axis for name, axis in axes.items() if name in named}

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Rotary positions without indexed assignment, their tables cut once; plain attention; constant time frequencies;
        timesteps of frames modulate frames, not tokens one by one.

        Rotation and time frequencies are the same float32 operations as before; softmax(q k^T) v rounds differently
        from PyTorch's fused kernel (about 1e-6 of the output).
        """
        with replaced(*wan_changes(model, "blocks"), (model, "forward", functools.partial(_run, model, model.forward))):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        feeds = dict(feeds)
        if feeds["timestep"].ndim == 2 and not isinstance(model.rope, RotaryTables):  # the class wants one for every token
            _, height, width = grid_of(feeds["hidden_states"], model.config.patch_size)
            feeds["timestep"] = torch.repeat_interleave(feeds["timestep"], height * width, 1)
        if model.config.pos_embed_seq_len is not None:  # the class wants two images as two rows of the batch
            feeds["encoder_hidden_states_image"] = feeds["encoder_hidden_states_image"].unflatten(1, (2, -1)).flatten(0, 1)
        return model(**feeds, return_dict=False)[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Times of tokens become times of frames; two images, two rows of the class's batch, one row."""
        feeds = dict(call)
        if feeds["timestep"].ndim == 2:
            _, height, width = grid_of(feeds["hidden_states"], config["patch_size"])
            feeds["timestep"] = feeds["timestep"][:, :: height * width]
        if config.get("pos_embed_seq_len") is not None and "encoder_hidden_states_image" in feeds:
            feeds["encoder_hidden_states_image"] = feeds["encoder_hidden_states_image"].unflatten(0, (-1, 2)).flatten(1, 2)
        return feeds


def _run(model: Any, plain: Any, *, hidden_states: torch.Tensor, timestep: torch.Tensor, **rest: Any) -> tuple[torch.Tensor]:
    """The model's forward pass, with timestep [B, frames] done frame by frame."""
    if timestep.ndim == 1:
        prediction: tuple[torch.Tensor] = plain(hidden_states=hidden_states, timestep=timestep, **rest)
        return prediction
    times, modulation, text, image = model.condition_embedder(
        timestep.flatten(),
        rest["encoder_hidden_states"],
        rest.get("encoder_hidden_states_image"),
        timestep_seq_len=timestep.shape[1],
    )
    modulation = torch.unflatten(modulation, 2, (6, -1))
    context = text if image is None else torch.cat([image, text], 1)
    rotary = model.rope(hidden_states)
    hidden = frame_tokens(model.patch_embedding, hidden_states)
    for block in model.blocks:
        hidden = block(hidden, context, modulation, rotary)
    return (finish(model, hidden, times, hidden_states),)
