"""Motif-Video: with cross-attention and a decoder, and as plain blocks that see an image."""

from family_case import Case

CONFIG = {
    "_class_name": "MotifVideoTransformer3DModel",
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 4,
    "num_single_layers": 6,
    "num_decoder_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "image_embed_dim": 12,
    "rope_axes_dim": [4, 6, 6],
    "enable_text_cross_attention_dual": True,
    "enable_text_cross_attention_single": True,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16, "image_tokens": 4},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7, "image_tokens": 9},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1, "image_tokens": 1},
)
PLAIN = {"num_layers": 3, "num_single_layers": 4, "num_decoder_layers": 0, "enable_text_cross_attention_dual": False}
CASES = [
    Case(name="motif-video", config=CONFIG, shapes=SHAPES),
    Case(
        name="motif-video-i2v",
        config={**CONFIG, **PLAIN},
        shapes=SHAPES,
        extra={"model_index.json": {"_class_name": "MotifVideoImage2VideoPipeline"}},
    ),
]
