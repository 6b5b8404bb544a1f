"""Kandinsky 5, text- and image-to-video."""

from family_case import Case

CONFIG = {
    "_class_name": "Kandinsky5Transformer3DModel",
    "in_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 8,
    "time_dim": 16,
    "out_visual_dim": 4,
    "patch_size": [1, 2, 2],
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 4,
    "num_visual_blocks": 4,
    "axes_dims": [4, 6, 6],
}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 2, "height": 60, "width": 62, "text_tokens": 7},  # 480 to 854 pixels: other positions
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1},
)
# diffusers rounds queries and keys to bfloat16, the graph does not.
ROUNDED = 5e-4
CASES = [
    Case(name="kandinsky5-t2v", config=CONFIG, shapes=SHAPES, patch_tolerance=ROUNDED, tolerance=ROUNDED, live=("pooled_projections",)),
    Case(
        name="kandinsky5-i2v",
        config={**CONFIG, "visual_cond": True, "num_text_blocks": 2},
        shapes=SHAPES,
        patch_tolerance=ROUNDED,
        tolerance=ROUNDED,
        live=("pooled_projections",),
    ),
]
