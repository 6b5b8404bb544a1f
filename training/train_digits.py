"""Train the bundled model: a small WanTransformer3DModel on videos of moving handwritten digits (how: `flow_training`).

python training/train_digits.py --out src/vditc/assets/digits --work runs/digits
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from digits_data import CLIP, SIDE, TEXT_DIM, Batch, publish
from flow_training import Phase, options, train

from vditc import digits

CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "in_channels": 7,  # 4 of the clip, 3 that say where they are
    "out_channels": 4,
    "text_dim": TEXT_DIM,
    "freq_dim": 64,
    "ffn_dim": 768,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
SAMPLING = {"steps": 16, "guidance_scale": 3.0, **CLIP, "extra_channels": "position"}
PHASES = (
    Phase(0.27, {1: 0.5, 2: 0.25, 4: 0.25}),  # digits, from single frames that cost little
    Phase(0.36, {1: 0.15, 2: 0.15, 4: 0.35, 8: 0.35}),
    Phase(0.53, {4: 0.15, 8: 0.85}),  # smooth motion
    Phase(0.81, {4: 0.3, 8: 0.7}, 0.6, 30.0),  # the axis of the motion
    Phase(1.00, {1: 0.45, 8: 0.55}, 0.6, 100.0),  # its sense: which side a frame's digit is on, single frames teach that too
)


def predict(model: Any, mixed: torch.Tensor, level: torch.Tensor, text: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The model sees the positions of the frames as channels."""
    everywhere = torch.from_numpy(digits.position_channels(digits.FRAMES, SIDE, SIDE))
    frames = mixed.shape[2]
    places = torch.stack([everywhere[:, first : first + frames] for first in batch.first.tolist()]).to(mixed.device)
    out: torch.Tensor = model(torch.cat([mixed, places], 1), level * 1000, text, return_dict=False)[0]
    return out


def main() -> None:
    args = options(__doc__, steps=3200)
    averaged = train(args, lambda: WanTransformer3DModel(**CONFIG), predict, ("blocks.",), PHASES)
    publish(args.out, "WanPipeline", WanTransformer3DModel(**CONFIG), averaged, SAMPLING)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
