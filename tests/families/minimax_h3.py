"""MiniMax-H3, text-to-video with sound."""

from family_case import Case

CONFIG = {
    "_class_name": "MiniMaxH3Transformer3DModel",
    "num_attention_heads": 3,
    "attention_head_dim": 16,  # of which 12 channels are rotated
    "hidden_size": 32,  # less than all heads together, as published
    "num_layers": 4,
    "num_refiner_layers": 4,
    "ffn_dim": 64,
    "in_channels": 6,
    "audio_in_channels": 5,
    "patch_size": [1, 2, 2],
    "text_dim": 24,
    "freq_dim": 16,
    "time_embed_hidden_dim": 40,
    "time_embed_dim": 20,
    "rope_freq_dim": 2,
}
# Audio tokens are of two channels, here of 5, 1 and 7 latents. 8 frames are more than one group of the VAE's.
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "audio_tokens": 10, "text_tokens": 15},
    {"batch": 1, "frames": 8, "height": 6, "width": 4, "audio_tokens": 2, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "audio_tokens": 14, "text_tokens": 1},
)
CASES = [Case(name="minimax-h3", config=CONFIG, shapes=SHAPES)]
