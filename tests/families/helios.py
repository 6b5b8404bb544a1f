"""Helios."""

from family_case import Case

CONFIG = {
    "_class_name": "HeliosTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 96,
    "num_layers": 5,
    "rope_dim": [8, 8, 8],
    "is_amplify_history": True,
}
SHAPES = (  # the past's sizes are whole patches of 8 rows or not
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16, "history_height": 8, "history_width": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7, "history_height": 14, "history_width": 6},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1, "history_height": 2, "history_width": 20},
)
CASES = [Case(name="helios", config=CONFIG, shapes=SHAPES)]
