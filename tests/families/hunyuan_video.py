"""HunyuanVideo 1.0 and 1.5, FramePack."""

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
CONFIG_15 = {
    "_class_name": "HunyuanVideo15Transformer3DModel",
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 5,
    "num_refiner_layers": 2,
    "mlp_ratio": 2.0,
    "patch_size": 1,
    "patch_size_t": 1,
    "text_embed_dim": 16,
    "text_embed_2_dim": 8,
    "image_embed_dim": 12,
    "rope_axes_dim": [2, 6, 8],
    "rope_theta": 256.0,
    "target_size": 640,
    "task_type": "t2v",
}
SHAPES_15 = (
    {"batch": 2, "frames": 3, "height": 4, "width": 5, "text_tokens": 8, "text_tokens_2": 12, "image_tokens": 6},
    {"batch": 1, "frames": 5, "height": 7, "width": 3, "text_tokens": 1, "text_tokens_2": 3, "image_tokens": 1},
    {"batch": 3, "frames": 1, "height": 1, "width": 9, "text_tokens": 13, "text_tokens_2": 5, "image_tokens": 3},
)
FRAMEPACK = {
    **CONFIG,
    "_class_name": "HunyuanVideoFramepackTransformer3DModel",
    "has_image_proj": True,
    "image_proj_dim": 12,
    "has_clean_x_embedder": True,
}
# Rows and columns of old latents are padded to multiples of 4 and 8.
FRAMEPACK_SHAPES = (
    {"batch": 2, "frames": 3, "height": 12, "width": 10, "text_tokens": 12, "image_tokens": 6},
    {"batch": 1, "frames": 5, "height": 18, "width": 16, "text_tokens": 7, "image_tokens": 1},
    {"batch": 3, "frames": 1, "height": 10, "width": 14, "text_tokens": 5, "image_tokens": 3},
)
CASES = [
    Case(
        name="hunyuan-video",
        config=CONFIG,
        shapes=SHAPES,
        live=("guidance, pooled_projections", "encoder_attention_mask, encoder_hidden_states"),
    ),
    Case(name="hunyuan-video-i2v-concat", config={**PLAIN, "in_channels": 9, "image_condition_type": "latent_concat"}, shapes=SHAPES),
    Case(name="hunyuan-video-i2v-replace", config={**CONFIG, "image_condition_type": "token_replace"}, shapes=SHAPES),
    Case(name="hunyuan-video-1.5-t2v", config=CONFIG_15, shapes=SHAPES_15),
    Case(name="hunyuan-video-1.5-i2v", config={**CONFIG_15, "task_type": "i2v", "use_meanflow": True}, shapes=SHAPES_15),
    Case(name="framepack", config=FRAMEPACK, shapes=FRAMEPACK_SHAPES),
]
