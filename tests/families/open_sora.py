"""Open-Sora 1.0 and 1.2."""

from family_case import Case

SIZES = {"hidden_size": 48, "depth": 4, "num_heads": 2, "caption_channels": 32, "model_max_length": 16}
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
    {"batch": 3, "frames": 1, "height": 2, "width": 14, "text_tokens": 1},
)
CASES = [
    Case(name="open-sora-1.0", config={"_class_name": "STDiT", **SIZES, "space_scale": 0.5, "time_scale": 2 / 3}, shapes=SHAPES),
    Case(name="open-sora-1.2", config={"_class_name": "STDiT3", **SIZES}, shapes=SHAPES),
]
