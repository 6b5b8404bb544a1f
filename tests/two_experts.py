"""A small random model of two experts, as diffusers saves Wan 2.2 A14B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_model import save_tiny_model, tiny_clips

from vditc.model_dir import PARTS

# Five steps of shift 3 are at 1000, 900, 751, 503 and 9 of 1000 training timesteps: the first expert has two of them.
STEPS, BOUNDARY, FIRST = 5, 0.875, 2
GUIDANCE = (4.0, 3.0)


def save_two_experts(folder: Path, **sampling: Any) -> Path:
    """A whole diffusers directory; `sampling` changes sampling.json."""
    path = save_tiny_model(folder / "model")
    (save_tiny_model(folder / "second", seed=1) / PARTS[0]).rename(path / PARTS[1])
    part = ["diffusers", "WanTransformer3DModel"]
    index = {"_class_name": "WanPipeline", **dict.fromkeys(PARTS, part), "boundary_ratio": BOUNDARY}
    (path / "model_index.json").write_text(json.dumps(index))
    own = {"steps": STEPS, "guidance_scale": GUIDANCE[0], "guidance_scale_2": GUIDANCE[1]}
    (path / "sampling.json").write_text(json.dumps(json.loads((path / "sampling.json").read_text()) | own | sampling))
    return path


def save_clips(model: Path) -> Path:
    """Conditionings of two clips, beside the model."""
    file = model.with_name("conditioning.safetensors")
    tiny_clips(model).save(file)
    return file
