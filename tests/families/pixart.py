"""PixArt: alpha with size conditions, and Sigma, whose positions are stretched."""

from family_case import Case

ALPHA = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "cross_attention_dim": 48,
    "sample_size": 128,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "caption_channels": 32,
    "interpolation_scale": 2,
    "use_additional_conditions": None,
}
SHAPES = (
    {"batch": 2, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "height": 2, "width": 14, "text_tokens": 1},
)
# The width of the published models.
WIDE = {**ALPHA, "num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "sample_size": 16}
CASES = [
    Case(name="pixart-alpha-1024", config=ALPHA, shapes=SHAPES, live=("aspect_ratio, resolution",)),
    Case(
        name="pixart-sigma",
        config={**WIDE, "interpolation_scale": 1, "use_additional_conditions": False},
        shapes=({"batch": 1, "height": 16, "width": 16, "text_tokens": 5}, *SHAPES[:2]),
        extra={"model_index.json": {"_class_name": "PixArtSigmaPipeline"}},
    ),
]
