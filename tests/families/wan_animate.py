"""Wan 2.2 Animate."""

from family_case import Case

CONFIG = {
    "_class_name": "WanAnimateTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 12,
    "latent_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 96,
    "num_layers": 8,
    "image_dim": 20,
    "added_kv_proj_dim": 48,
    "rope_max_seq_len": 64,
    "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "image_tokens": 7},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "image_tokens": 3},
    {"batch": 3, "frames": 2, "height": 2, "width": 14, "image_tokens": 17},
)
CASES = [Case(name="wan-animate", config=CONFIG, shapes=SHAPES)]
