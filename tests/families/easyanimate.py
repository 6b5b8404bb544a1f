"""EasyAnimate."""

from family_case import Case

CONFIG = {
    "_class_name": "EasyAnimateTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "sample_width": 90,
    "sample_height": 60,
    "num_layers": 5,
    "mmdit_layers": 5,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "add_norm_text_encoder": True,
    "time_position_encoding_type": "3d_rope",
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 7, "text_tokens_t5": 5},
    {"batch": 1, "frames": 5, "height": 6, "width": 22, "text_tokens": 16, "text_tokens_t5": 1},
    {"batch": 3, "frames": 1, "height": 14, "width": 2, "text_tokens": 1, "text_tokens_t5": 9},
)
# Inpainting models see a mask and the masked clip behind the latents. One mixes the two kinds of blocks.
MIXED = {"in_channels": 9, "mmdit_layers": 1, "after_norm": True, "add_norm_text_encoder": False, "text_embed_dim_t5": 20}
CASES = [
    Case(name="easyanimate", config=CONFIG, shapes=SHAPES),
    Case(name="easyanimate-inpaint", config={**CONFIG, **MIXED}, shapes=SHAPES),
]
