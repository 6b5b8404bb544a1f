"""LTX-2, 2.3 and 2.5."""

from family_case import Case

CONFIG = {
    "_class_name": "LTX2VideoTransformer3DModel",
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "audio_in_channels": 5,
    "audio_out_channels": 5,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32,
    "num_layers": 4,
    "caption_channels": 24,
    "rope_double_precision": True,
    "rope_type": "split",
}
# 2.3 projects its text outside, gates each head and lets the time modulate the text's keys and values.
NEXT = {
    **CONFIG,
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 4, "width": 5, "audio_tokens": 11, "text_tokens": 12},
    {"batch": 1, "frames": 5, "height": 7, "width": 3, "audio_tokens": 4, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 1, "width": 9, "audio_tokens": 1, "text_tokens": 9},
)
CASES = [
    Case(name="ltx-2-interleaved", config={**CONFIG, "rope_type": "interleaved", "rope_double_precision": False}, shapes=SHAPES),
    Case(name="ltx-2", config=CONFIG, shapes=SHAPES),
    Case(name="ltx-2.3", config=NEXT, shapes=SHAPES),
    Case(
        name="ltx-2.5",
        config={**NEXT, "ff_bias": False, "use_prompt_adaln_single": False, "use_keyframes_abs_pos_embedding": True},
        shapes=SHAPES,
    ),
]
