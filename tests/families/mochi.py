"""Mochi 1."""

from family_case import Case

CONFIG = {
    "_class_name": "MochiTransformer3DModel",
    "patch_size": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 5,  # the last is special
    "pooled_projection_dim": 16,
    "in_channels": 4,
    "out_channels": None,
    "qk_norm": "rms_norm",
    "text_embed_dim": 24,
    "time_embed_dim": 32,
    "activation_fn": "swiglu",
    "max_sequence_length": 16,
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 9},
)
# TensorRT-RTX 1.7.1 fuses INT4 weights into the products of few rows only sometimes: those of the text, 7 to 16 rows here, get a kernel of
# their own that expands them on every run.
CASES = [
    Case(
        name="mochi",
        config=CONFIG,
        shapes=SHAPES,
        no_engine={"w4a16": r"add_q_proj: the int4 weight is dequantized by a kernel"},
        live=("encoder_attention_mask, encoder_hidden_states",),
    )
]
