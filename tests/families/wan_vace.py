"""Wan-VACE."""

from family_case import Case

CONFIG = {
    "_class_name": "WanVACETransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 96,
    "num_layers": 8,
    "vace_layers": [0, 2, 4, 6],
    "vace_in_channels": 12,
    "rope_max_seq_len": 64,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1},
)
CASES = [Case(name="wan-vace", config=CONFIG, shapes=SHAPES)]
