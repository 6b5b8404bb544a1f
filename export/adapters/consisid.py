"""ConsisID, CogVideoX that keeps the identity of a face (diffusers ConsisIDTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.axis import Axis
from vditc.errors import InputError
from vditc.export.adapters.cogvideox import CogVideoX
from vditc.export.patches import plain_attention, replaced
from vditc.model_dir import ModelDir

_IMAGE_TOKENS = 577  # of the image encoder, EVA-CLIP at 336 pixels: 24 x 24 patches and one more


class ConsisID(CogVideoX):
    """Blocks of CogVideoX; behind the first of every `cross_attn_interval` blocks video attends to tokens made of a face."""

    name: ClassVar[str] = "consisid"
    description: ClassVar[str] = "ConsisID, text-to-video with a given face"
    model_class: ClassVar[str] = "ConsisIDTransformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p49": (49, 480, 720)}
    roles: ClassVar[Mapping[str, str]] = {
        **CogVideoX.roles,
        r"local_facial_extractor\.mapping_\d+\.0": "image_embed.in",
        r"local_facial_extractor\.mapping_\d+\.[36]": "image_embed.out",
        r"local_facial_extractor\.id_embedding_mapping\.0": "other_embed.in",
        r"local_facial_extractor\.id_embedding_mapping\.[36]": "other_embed.out",
        r"local_facial_extractor\.layers\.\d+\.0\.to_q": "refiner_attn.q",
        r"local_facial_extractor\.layers\.\d+\.0\.to_kv": "refiner_attn.kv",
        r"local_facial_extractor\.layers\.\d+\.0\.to_out": "refiner_attn.out",
        r"local_facial_extractor\.layers\.\d+\.1\.1": "refiner_ffn.in",
        r"local_facial_extractor\.layers\.\d+\.1\.3": "refiner_ffn.out",
        r"perceiver_cross_attention\.\d+\.to_q": "cross_attn.q",
        r"perceiver_cross_attention\.\d+\.to_kv": "cross_attn.kv",
        r"perceiver_cross_attention\.\d+\.to_out": "cross_attn.out",
    }

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One, of as many blocks as have one look at the face."""
        blocks = int(config["num_layers"])
        if not config.get("is_train_face"):
            return (Loop(modules={"transformer_blocks": 1}, count=blocks),)
        interval = int(config["cross_attn_interval"])
        if blocks % interval:
            raise InputError(
                found=f"{blocks} layers, cross_attn_interval {interval}",
                wanted="whole intervals",
                where="transformer/config.json",
                fix="use the config.json of the checkpoint",
            )
        return (Loop(modules={"transformer_blocks": interval, "perceiver_cross_attention": 1}, count=blocks // interval),)

    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """The config with fewer blocks."""
        (loop,) = self.loops(config)
        return {**config, "num_layers": counts[0] * loop.modules["transformer_blocks"]}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Those of CogVideoX, id_cond [B, LFE_id_dim], id_vit_hidden [B, LFE_num_scale, image_tokens, LFE_vit_dim].

        The class takes id_vit_hidden as a list of LFE_num_scale tensors [B, image_tokens, LFE_vit_dim].
        """
        config, specs = source.config, super().inputs(source)
        if config.get("is_train_face"):
            scales, width = int(config["LFE_num_scale"]), int(config["LFE_vit_dim"])
            specs += (
                InputSpec("id_cond", "float32", ("batch", int(config["LFE_id_dim"]))),
                InputSpec("id_vit_hidden", "float32", ("batch", scales, "image_tokens", width)),
            )
        return specs

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """49 frames of 480 x 720: latent 13 x 60 x 90."""
        axes = super().axes(source)
        return {**axes, "image_tokens": Axis(default=_IMAGE_TOKENS)} if source.config.get("is_train_face") else axes

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """As `CogVideoX`, and the face's attention scaled once: that rounds differently, about 1e-7 of the output."""
        changes: list[tuple[Any, str, Any]] = []
        if model.is_train_face:
            changes += [(a, "forward", functools.partial(_look, a)) for a in model.perceiver_cross_attention]
            changes += [(layer[0], "forward", functools.partial(_refine, layer[0])) for layer in model.local_facial_extractor.layers]
        with super().patched(model), replaced(*changes):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        feeds = dict(feeds)
        if "id_vit_hidden" in feeds:
            feeds["id_vit_hidden"] = [feeds["id_vit_hidden"][:, i] for i in range(model.config.LFE_num_scale)]
        return super().forward(model, feeds)

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class takes a list of the scales."""
        feeds = super().fed_by(call, config)
        if "id_vit_hidden" in feeds:
            feeds["id_vit_hidden"] = torch.stack(list(feeds["id_vit_hidden"]), 1)
        return feeds


def _attend(attn: Any, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """queries [B, T, dim] attend to memory [B, M, dim]."""
    query, keys_values = attn.to_q(queries), attn.to_kv(memory)
    query, key, value = (torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2) for x in (query, *keys_values.chunk(2, -1)))
    out: torch.Tensor = attn.to_out(plain_attention(query, key, value).transpose(1, 2).flatten(2))
    return out


def _look(attn: Any, face: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """video [B, tokens, dim] attends to the face's tokens [B, M, dim]."""
    return _attend(attn, attn.norm2(video), attn.norm1(face))


def _refine(attn: Any, image: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """The face's tokens [B, M, dim] attend to the image's [B, N, dim] and to themselves."""
    face = attn.norm2(face)
    return _attend(attn, face, torch.cat([attn.norm1(image), face], 1))
