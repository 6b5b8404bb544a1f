"""LTX-Video."""

from family_case import Case

CONFIG = {
    "_class_name": "LTXVideoTransformer3DModel",
    "in_channels": 8,
    "out_channels": 8,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 4,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "caption_channels": 24,
    "attention_bias": True,
    "attention_out_bias": True,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 4, "width": 5, "text_tokens": 12},
    {"batch": 1, "frames": 5, "height": 7, "width": 3, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 1, "width": 9, "text_tokens": 9},
)
CASES = [
    Case(name="ltx-0.9.0", config=CONFIG, shapes=SHAPES, extra={"model_index.json": {"_class_name": "LTXPipeline"}}),
    # 13B has heads of 128; the first latent stands for one frame.
    Case(
        name="ltx-13b",
        config={**CONFIG, "attention_head_dim": 24, "cross_attention_dim": 48},
        shapes=SHAPES,
        extra={"model_index.json": {"_class_name": "LTXConditionPipeline"}},
    ),
]
