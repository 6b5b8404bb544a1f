"""ChronoEdit."""

from family_case import Case

CONFIG = {
    "_class_name": "ChronoEditTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 12,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 96,
    "num_layers": 4,
    "image_dim": 20,
    "added_kv_proj_dim": 48,
    "rope_max_seq_len": 64,
    "rope_temporal_skip_len": 8,
}
SHAPES = (  # two frames have positions of their own
    {"batch": 2, "frames": 2, "height": 8, "width": 10, "image_tokens": 7},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "image_tokens": 3},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "image_tokens": 17},
)
CASES = [Case(name="chronoedit", config=CONFIG, shapes=SHAPES)]
