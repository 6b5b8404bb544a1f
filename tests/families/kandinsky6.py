"""Kandinsky 6, text-to-video with sound."""

from family_case import Case

CONFIG = {
    "_class_name": "Kandinsky6Transformer3DModel",
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 8,
    "time_dim": 16,
    "patch_size": [1, 2, 2],
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 4,
    "num_visual_blocks": 4,
    "axes_dims": [4, 6, 6],
    "in_audio_dim": 5,
    "out_audio_dim": 5,
    "model_dim_a": 48,  # sound is wider here, so that a mixed-up width is seen
    "time_dim_a": 16,
    "ff_dim_a": 80,
    "audio_freqs_scaling": 0.5,
    "text_token_padding": True,
    "ca_rope": True,
    "cross_gates": False,
    "fix_modulation": True,
    "visual_token_type_num_embeddings": 2,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "audio_tokens": 9, "text_tokens": 16},
    {"batch": 1, "frames": 2, "height": 4, "width": 6, "audio_tokens": 5, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "audio_tokens": 1, "text_tokens": 1},
)
CASES = [
    Case(name="kandinsky6", config=CONFIG, shapes=SHAPES, live=("pooled_projections",) * 2),
    # As published: gates of the other stream (which then have one width), both streams with the same attention.
    Case(
        name="kandinsky6-gates",
        config={**CONFIG, "model_dim_a": 32, "cross_gates": True, "audio_freqs_scaling": 1.0, "visual_cond": False},
        shapes=SHAPES,
        live=("pooled_projections",) * 2,
    ),
]
