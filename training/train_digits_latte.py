"""Train the second bundled model: a small LatteTransformer3DModel on the same videos (how: `flow_training`).

Its attention is factorised: a block over the tokens of each frame, then a block over the frames of each token.

    python training/train_digits_latte.py --out src/vditc/assets/digits_latte --work runs/digits_latte --threads 1
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LatteTransformer3DModel
from digits_data import CLIP, SIDE, TEXT_DIM, Batch, publish
from flow_training import Phase, options, train

from vditc import digits
from vditc.export.adapters.latte import Latte
from vditc.export.adapters.pixart import head

CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "cross_attention_dim": 128,
    "attention_bias": True,
    "sample_size": SIDE,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": TEXT_DIM,
    "video_length": digits.FRAMES,
}
SAMPLING = {"steps": 12, "guidance_scale": 3.0, **CLIP}
PHASES = (
    Phase(0.30, {1: 0.6, 2: 0.2, 4: 0.2}, 0.2, 30.0),  # digits, and which side they are on in which frame
    Phase(0.46, {1: 0.3, 2: 0.1, 4: 0.2, 8: 0.4}, 0.3, 30.0),  # whole clips
    Phase(0.70, {1: 0.1, 4: 0.1, 8: 0.8}, 0.35, 30.0),  # smooth motion
    Phase(1.00, {1: 0.2, 8: 0.8}, 0.4, 100.0),  # the sense of its direction
)


def predict(model: Any, mixed: torch.Tensor, level: torch.Tensor, text: torch.Tensor, batch: Batch) -> torch.Tensor:
    """As `Latte.patched` computes, but every frame, single ones too, gets the temporal position that it has in its whole clip."""
    frames, side = mixed.shape[2], mixed.shape[3] // model.config.patch_size
    time, embedded = model.adaln_single(level * 1000, None, batch_size=len(mixed), hidden_dtype=mixed.dtype)
    words = model.caption_projection(text)
    numbers = batch.first[:, None] + torch.arange(frames)
    x = torch.unflatten(model.pos_embed(mixed.transpose(1, 2).flatten(0, 1)), 0, (-1, frames))
    for i, (spatial, temporal) in enumerate(zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)):
        x = spatial(x, time, words).transpose(1, 2)
        if i == 0:
            x = x + model.temp_pos_embed[0, numbers].unsqueeze(1)
        x = temporal(x, time).transpose(1, 2)
    return head(model, x, embedded, side, side)


def main() -> None:
    args = options(__doc__, steps=2400)
    made: LatteTransformer3DModel = LatteTransformer3DModel(**CONFIG)
    with Latte().patched(made):
        averaged = train(args, lambda: made, predict, ("transformer_blocks.", "temporal_transformer_blocks."), PHASES)
    publish(args.out, "LattePipeline", LatteTransformer3DModel(**CONFIG), averaged, SAMPLING)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
