"""Wan 2.1 and 2.2."""

from family_case import Case

CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 96,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1},
)
IMAGE_SHAPES = tuple({**shape, "image_tokens": tokens} for shape, tokens in zip(SHAPES, (7, 3, 17), strict=True))
IMAGE = {"in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 48}
CASES = [
    Case(name="wan", config=CONFIG, shapes=SHAPES),
    Case(name="wan-i2v", config={**CONFIG, **IMAGE}, shapes=IMAGE_SHAPES),
    Case(name="wan-flf2v", config={**CONFIG, **IMAGE, "pos_embed_seq_len": 10}, shapes=SHAPES),
    Case(
        name="wan2.2-ti2v",
        config={**CONFIG, "in_channels": 8, "out_channels": 8},
        shapes=SHAPES,
        extra={"model_index.json": {"_class_name": "WanPipeline", "expand_timesteps": True}},
    ),
]
