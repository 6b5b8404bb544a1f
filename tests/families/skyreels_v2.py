"""SkyReels-V2."""

from family_case import Case

CONFIG = {
    "_class_name": "SkyReelsV2Transformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 96,
    "num_layers": 4,
    "rope_max_seq_len": 64,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16, "image_tokens": 7},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7, "image_tokens": 3},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1, "image_tokens": 17},
)
GROUPED = tuple({**shape, "frames": frames} for shape, frames in zip(SHAPES, (4, 6, 2), strict=True))
FORCING = {"model_index.json": {"_class_name": "SkyReelsV2DiffusionForcingPipeline"}}
CASES = [
    Case(
        name="skyreels-v2-i2v",
        config={**CONFIG, "in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 48},
        shapes=SHAPES,
    ),
    Case(
        name="skyreels-v2-df",
        config={**CONFIG, "inject_sample_info": True},
        shapes=SHAPES,
        extra=FORCING,
    ),
    Case(
        name="skyreels-v2-df-grouped",
        config={**CONFIG, "num_frame_per_block": 2},
        shapes=GROUPED,
        extra=FORCING,
    ),
]
