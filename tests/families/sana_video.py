"""SANA-Video."""

from family_case import Case

CONFIG = {
    "_class_name": "SanaVideoTransformer3DModel",
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 4,
    "num_cross_attention_heads": 3,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 48,
    "caption_channels": 20,
    "mlp_ratio": 2.0,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 9},
)
CASES = [Case(name="sana-video", config=CONFIG, shapes=SHAPES)]
