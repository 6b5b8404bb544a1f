"""Cosmos 3: like Nano and Super, and like Edge."""

from family_case import Case

CONFIG = {
    "_class_name": "Cosmos3OmniTransformer",
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "latent_channel": 4,
    "latent_patch_size": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "patch_latent_dim": 16,
    "rope_scaling": {"mrope_section": [4, 2, 2]},
    "vocab_size": 160,
    "sound_dim": 6,
    "sound_gen": True,
}
# The masks of a batch hide a quarter of the text of all clips but the first, and give a quarter of their frames.
SHAPES = (
    {"batch": 2, "frames": 5, "height": 6, "width": 9, "text_tokens": 13},
    {"batch": 1, "frames": 3, "height": 7, "width": 4, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 3, "width": 5, "text_tokens": 4},
)
EDGE = {
    **CONFIG,
    "action_dim": 5,
    "action_gen": True,
    "hidden_act": "relu2",
    "hidden_size": 48,  # less than the heads' width, as Super's
    "qk_norm_for_text": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
    "sound_dim": None,
    "sound_gen": False,
    "use_und_k_norm_for_gen": True,
}
CASES = [
    Case(name="cosmos3-nano", config=CONFIG, shapes=SHAPES),
    Case(name="cosmos3-edge", config=EDGE, shapes=SHAPES),
]
