"""HunyuanVideo."""

from family_case import Case

CONFIG = {
    "_class_name": "HunyuanVideoTransformer3DModel",
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 4,
    "num_single_layers": 4,
    "num_refiner_layers": 2,
    "mlp_ratio": 2.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_theta": 256.0,
    "rope_axes_dim": [4, 6, 6],
}
# The mask of a batch hides a quarter of the text of all clips but the first.
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 12},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 5},
)
PLAIN = {**CONFIG, "guidance_embeds": False}
CASES = [
    Case(name="hunyuan-video", config=CONFIG, shapes=SHAPES),
    Case(name="hunyuan-video-i2v-concat", config={**PLAIN, "in_channels": 9, "image_condition_type": "latent_concat"}, shapes=SHAPES),
    Case(name="hunyuan-video-i2v-replace", config={**CONFIG, "image_condition_type": "token_replace"}, shapes=SHAPES),
]
