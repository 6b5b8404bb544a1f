"""Latte."""

from family_case import Case

CONFIG = {
    "_class_name": "LatteTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "cross_attention_dim": 48,
    "attention_bias": True,
    "sample_size": 16,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 32,
    "video_length": 8,
}
SHAPES = (
    {"batch": 2, "frames": 8, "height": 16, "width": 16, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1},
)
CASES = [Case(name="latte", config=CONFIG, shapes=SHAPES)]
