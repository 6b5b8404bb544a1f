"""Wan 2.2 Animate: a character moved by a pose clip and face images (diffusers WanAnimateTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.nn import functional

from vditc.adapter import InputSpec, Loop
from vditc.correction import FrameOrder
from vditc.export.adapters.wan import Wan
from vditc.export.adapters.wan_blocks import RotaryTables, latent_axes, unpack, wan_changes
from vditc.export.frame_orders import frames_first
from vditc.export.patches import plain_attention, replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis

IMAGES = 4  # face images to a frame of the latent
UNSEEN = IMAGES + IMAGES - 1  # the reference has no face, and the first frame after it stands for one image


class WanAnimate(Wan):
    """Wan 2.1 image-to-video; a pose is added to the tokens, and every few blocks a frame's tokens look at its face's motion.

    Frame 0 is the reference picture: nothing of the pose and the face is read there.
    """

    name: ClassVar[str] = "wan-animate"
    description: ClassVar[str] = "Wan 2.2 Animate, characters moved by pose and face"
    model_class: ClassVar[str] = "WanAnimateTransformer3DModel"
    # 77 frames, and the reference, which is a frame of the latent too
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p77": (81, 480, 832), "720p77": (81, 720, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        **Wan.roles,
        r"pose_patch_embedding": "patch_embed",
        r"motion_encoder\..*": "other_embed.in",
        r"face_encoder\.conv\d.*": "other_embed.in",
        r"face_encoder\.out_proj": "other_embed.out",
        **{rf"face_adapter\.\d+\.to_{part}": f"image_attn.{part}" for part in ("q", "k", "v", "out")},
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {**Wan.frame_orders, **frames_first(r"face_adapter\.\d+\.to_(q|out)")}

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """A face attention and the blocks around it, as far as the next."""
        period = int(config["inject_face_latents_blocks"])
        return (Loop(modules={"blocks": period, "face_adapter": 1}, count=int(config["num_layers"]) // period),)

    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """As many face attentions."""
        return {**config, "num_layers": counts[0] * int(config["inject_face_latents_blocks"])}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Wan's, pose_hidden_states [B, C, F, H, W] and face_pixel_values [B, 3, F, 4, size, size].

        diffusers takes T = F - 1 frames of pose and 4 (T - 1) + 1 images. Here both have the frames of the latent: frame 0 of the
        pose and the first seven images are not read.
        """
        config = source.config
        size = int(config["motion_encoder_size"])
        return (
            *super().inputs(source),
            InputSpec("pose_hidden_states", "float32", ("batch", int(config["latent_channels"]), "frames", "height", "width")),
            InputSpec("face_pixel_values", "float32", ("batch", 3, "frames", IMAGES, size, size)),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """720p, 77 frames and the reference: latent 21 x 90 x 160."""
        axes = {**super().axes(source), **latent_axes(source, 81, 720, 1280)}
        frames = axes["frames"]
        axes["frames"] = Axis(default=frames.default, low=2, high=frames.high, unit="frames", stride=frames.stride, causal=True)
        return axes

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """As Wan's; the motion encoder sees all face images at once, scales behind its convolutions instead of its weights, and
        turns its basis orthonormal by reflections instead of LAPACK's QR (which are the same ones); padding by concatenation.

        All of these round differently, about 1e-6 of the output.
        """
        motion = model.motion_encoder
        with replaced(
            *wan_changes(model, "blocks"),
            *((a, "processor", _attend_face) for a in model.face_adapter),
            *((m, "forward", functools.partial(_convolve, m)) for m in motion.modules() if type(m).__name__ == "MotionConv2d"),
            (motion, "forward", functools.partial(_encode_motion, motion, _Orthonormal(*motion.motion_synthesis_weight.shape))),
            (model.face_encoder, "forward", functools.partial(_encode_faces, model.face_encoder)),
            (model, "forward", functools.partial(_run, model)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        pose, faces = feeds["pose_hidden_states"][:, :, 1:], feeds["face_pixel_values"].flatten(2, 3)[:, :, UNSEEN:]
        feeds = {**feeds, "pose_hidden_states": pose, "face_pixel_values": faces}
        return model(**feeds) if isinstance(model.rope, RotaryTables) else model(**feeds, return_dict=False)[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Zeros for what is not read: the pose of frame 0, the first images."""
        if call.get("motion_encode_batch_size"):
            raise self.no_form("motion_encode_batch_size", "all images at once")
        feeds = super().fed_by(call, config)
        pose, faces = feeds["pose_hidden_states"], feeds["face_pixel_values"]
        faces = torch.cat([torch.zeros_like(faces[:, :, :1]).expand(-1, -1, UNSEEN, -1, -1), faces], 2)
        return {
            **feeds,
            "pose_hidden_states": torch.cat([torch.zeros_like(pose[:, :, :1]), pose], 2),
            "face_pixel_values": torch.unflatten(faces, 2, (-1, IMAGES)),
        }


def _run(
    model: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_hidden_states_image: torch.Tensor,
    pose_hidden_states: torch.Tensor,
    face_pixel_values: torch.Tensor,
) -> torch.Tensor:
    """The model's forward pass."""
    times, modulation, text, image = model.condition_embedder(timestep, encoder_hidden_states, encoder_hidden_states_image)
    modulation = torch.unflatten(modulation, 1, (6, -1))
    context = torch.cat([image, text], 1)
    rotary = model.rope(hidden_states)
    clip, pose = model.patch_embedding(hidden_states), model.pose_patch_embedding(pose_hidden_states)
    hidden = torch.cat([clip[:, :, :1], clip[:, :, 1:] + pose], 2).flatten(2).transpose(1, 2)
    batch, images = face_pixel_values.shape[0], face_pixel_values.shape[2]
    motion = model.motion_encoder(face_pixel_values.transpose(1, 2).flatten(0, 1)).reshape(batch, images, -1)
    faces = model.face_encoder(motion)
    faces = torch.cat([torch.zeros_like(faces[:, :1]), faces], 1)
    for i, block in enumerate(model.blocks):
        hidden = block(hidden, context, modulation, rotary)
        if i % model.config.inject_face_latents_blocks == 0:
            hidden = hidden + model.face_adapter[i // model.config.inject_face_latents_blocks](hidden, faces)
    shift, scale = torch.split(model.scale_shift_table + times.unsqueeze(1), 1, 1)
    tokens = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
    return unpack(tokens, hidden_states, model.config.patch_size)


def _attend_face(attn: Any, hidden: torch.Tensor, faces: torch.Tensor, mask: None = None) -> torch.Tensor:
    """Tokens [B, F x tokens of a frame, dim] attend to faces [B, F, n, dim], each frame to its own."""
    frames = faces.shape[1]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(torch.unflatten(x, 2, (attn.heads, -1)), 1, (frames, -1)).transpose(2, 3)

    memory = attn.pre_norm_kv(faces).flatten(1, 2)
    query, key = attn.norm_q(heads(attn.to_q(attn.pre_norm_q(hidden)))), attn.norm_k(heads(attn.to_k(memory)))
    attended = plain_attention(query, key, heads(attn.to_v(memory)))
    out: torch.Tensor = attn.to_out(attended.transpose(2, 3).flatten(3).flatten(1, 2))
    return out


def _convolve(conv: Any, x: torch.Tensor, channel_dim: int = 1) -> torch.Tensor:
    """A convolution of images [N, C, H, W], blurred before where it halves them."""
    if conv.blur:
        kernel = conv.blur_kernel[None, None].expand(conv.in_channels, 1, -1, -1)
        x = functional.conv2d(x, kernel, padding=conv.blur_padding, groups=conv.in_channels)
    x = functional.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding) * conv.scale
    if conv.act_fn is not None:
        x = conv.act_fn(x, 1)
    out: torch.Tensor = x if conv.bias is None else x + conv.bias[:, None, None]
    return out


def _encode_motion(encoder: Any, basis: _Orthonormal, images: torch.Tensor) -> torch.Tensor:
    """Motion [N, out_dim] of face images [N, 3, size, size]."""
    x: torch.Tensor = encoder.conv_in(images)
    for block in encoder.res_blocks:
        x = block(x)
    x = encoder.conv_out(x).flatten(1)
    for layer in encoder.motion_network:
        x = functional.linear(x, layer.weight) * layer.scale
        if layer.bias is not None:
            x = x + layer.bias
    vectors: torch.Tensor = basis(encoder.motion_synthesis_weight + 1e-8)
    return x @ vectors.transpose(0, 1)


def _encode_faces(encoder: Any, motion: torch.Tensor) -> torch.Tensor:
    """Motion [B, images, dim] -> [B, frames, n + 1, out_dim]; every convolution sees the past only."""
    past, _ = encoder.time_causal_padding

    def convolve(conv: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[:, :1].expand(-1, past, -1), x], 1)
        out: torch.Tensor = conv(x.transpose(1, 2)).transpose(1, 2)
        return out

    batch = motion.shape[0]
    x = torch.unflatten(convolve(encoder.conv1_local, motion), 2, (encoder.num_heads, -1))
    x = encoder.act(encoder.norm1(x.transpose(1, 2).flatten(0, 1)))
    x = encoder.act(encoder.norm2(convolve(encoder.conv2, x)))
    x = encoder.act(encoder.norm3(convolve(encoder.conv3, x)))
    x = encoder.out_proj(x).reshape(batch, encoder.num_heads, x.shape[1], -1).transpose(1, 2)
    return torch.cat([x, encoder.padding_tokens.expand(batch, x.shape[1], -1, -1)], 2)


class _Orthonormal(torch.nn.Module):
    """Q of the QR decomposition of a weight [rows, columns], by Householder's reflections with LAPACK's signs."""

    basis: torch.Tensor
    below: torch.Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.eye(rows, columns), persistent=False)
        self.register_buffer("below", torch.ones(rows, columns).tril(), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """See the class."""
        reflections = []
        for j in range(weight.shape[1]):
            column = weight[:, j : j + 1] * self.below[:, j : j + 1]
            length = (column * column).sum().sqrt()
            axis = column + torch.where(weight[j, j] < 0, -length, length) * self.basis[:, j : j + 1]
            reflections.append((axis, 2 / (axis * axis).sum()))
            weight = _reflect(weight, *reflections[-1])
        orthonormal = self.basis
        for reflection in reversed(reflections):
            orthonormal = _reflect(orthonormal, *reflection)
        return orthonormal


def _reflect(x: torch.Tensor, axis: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return x - axis * (factor * (axis * x).sum(0, keepdim=True))
