"""Allegro."""

from family_case import Case

CONFIG = {
    "_class_name": "AllegroTransformer3DModel",
    "patch_size": 2,
    "patch_size_t": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "dropout": 0.0,
    "cross_attention_dim": 48,
    "attention_bias": True,
    "sample_height": 8,
    "sample_width": 10,
    "sample_frames": 3,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "caption_channels": 20,
    "interpolation_scale_h": 2.0,
    "interpolation_scale_w": 2.0,
    "interpolation_scale_t": 2.2,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 9},
)
CASES = [Case(name="allegro", config=CONFIG, shapes=SHAPES)]
