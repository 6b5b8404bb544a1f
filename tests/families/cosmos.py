"""Cosmos 1, 2 and 2.5."""

from family_case import Case

CONFIG = {
    "_class_name": "CosmosTransformer3DModel",
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 4,
    "mlp_ratio": 2.0,
    "text_embed_dim": 24,
    "adaln_lora_dim": 8,
    "max_size": [16, 32, 32],
    "patch_size": [1, 2, 2],
    "rope_scale": [2.0, 1.0, 1.0],
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",
}
SECOND = {**CONFIG, "extra_pos_embed_type": None, "rope_scale": [1.0, 3.0, 3.0]}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 9},
)
CASES = [
    Case(name="cosmos-1-text2world", config=CONFIG, shapes=SHAPES),
    Case(
        name="cosmos-2-text2image",
        config={**SECOND, "rope_scale": [1.0, 4.0, 4.0]},
        shapes=tuple({name: size for name, size in shape.items() if name != "frames"} for shape in SHAPES),
    ),
    Case(name="cosmos-2-video2world", config={**SECOND, "in_channels": 5}, shapes=SHAPES),
    Case(
        name="cosmos-2.5",
        config={
            **SECOND,
            "in_channels": 5,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 40,
            "encoder_hidden_states_channels": 24,
        },
        shapes=SHAPES,
    ),
]
