"""CogVideoX 1.0 and 1.5, and ConsisID, which is made from it."""

from family_case import Case

CONFIG = {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "num_layers": 5,
    "sample_width": 10,
    "sample_height": 8,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 7,
    "spatial_interpolation_scale": 1.875,
    "temporal_interpolation_scale": 1.0,
    "use_rotary_positional_embeddings": False,
}
ROTARY = {**CONFIG, "use_rotary_positional_embeddings": True}
DEEP = {**ROTARY, "patch_size_t": 2, "sample_width": 40, "sample_height": 40, "patch_bias": False}
# The first is the size that the model was trained at, the others are wider and taller.
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 7},
    {"batch": 1, "frames": 5, "height": 6, "width": 22, "text_tokens": 16},
    {"batch": 3, "frames": 1, "height": 14, "width": 2, "text_tokens": 1},
)
DEEP_SHAPES = tuple({**shape, "frames": frames} for shape, frames in zip(SHAPES, (4, 6, 2), strict=True))
TRAINED_SHAPES = tuple({**SHAPES[0], "batch": batch} for batch in (2, 1, 3))
FACE = {
    **ROTARY,
    "_class_name": "ConsisIDTransformer3DModel",
    "in_channels": 8,
    "num_attention_heads": 3,  # the face's tokens are two thirds as wide
    "attention_head_dim": 16,
    "num_layers": 8,
    "is_train_face": True,
    "cross_attn_interval": 2,
    "cross_attn_dim_head": 16,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 12,
    "LFE_vit_dim": 16,
    "LFE_depth": 4,
    "LFE_dim_head": 16,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 3,
    "LFE_num_querie": 5,
    "LFE_output_dim": 32,
    "LFE_ff_mult": 2,
    "LFE_num_scale": 2,
    "local_face_scale": 0.7,
}
FACE_SHAPES = tuple({**shape, "image_tokens": tokens} for shape, tokens in zip(SHAPES, (10, 3, 1), strict=True))
CASES = [
    Case(name="cogvideox-2b", config=CONFIG, shapes=SHAPES),
    Case(name="cogvideox-5b", config=ROTARY, shapes=SHAPES),
    Case(name="cogvideox-5b-i2v", config={**ROTARY, "in_channels": 8, "use_learned_positional_embeddings": True}, shapes=TRAINED_SHAPES),
    Case(name="cogvideox-1.5", config=DEEP, shapes=DEEP_SHAPES),
    Case(name="cogvideox-1.5-i2v", config={**DEEP, "in_channels": 8, "ofs_embed_dim": 16}, shapes=DEEP_SHAPES),
    # TensorRT-RTX 1.7 expands INT4 weights of the few rows of a face's features with kernels of their own; recipes keep these layers.
    Case(name="consisid", config=FACE, shapes=FACE_SHAPES, no_engine={"w4a16": r"local_facial_extractor.*a kernel of its own"}),
]
