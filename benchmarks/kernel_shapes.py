"""Linear layers of published models, from their configs (`export_models.toml`)."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROWS = (4096, 32760, 75600)  # tokens: a small clip; Wan at 480p and at 720p, 81 frames each
TEXT = 512  # tokens of Wan's prompt
_CONFIGS = tomllib.loads(Path(__file__).with_name("export_models.toml").read_text())


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of one model's blocks."""

    name: str
    heads: int
    head_dim: int
    ffn: int

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim

    @property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (N, K) of the block's layers that have tokens for rows."""
        return {"attention": (self.width, self.width), "up": (self.ffn, self.width), "down": (self.width, self.ffn)}


def _model(name: str) -> Model:
    config: Mapping[str, Any] = _CONFIGS[name]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    # diffusers' CogVideoXBlock: a feed-forward of four times the width.
    return Model(name, heads, head_dim, config.get("ffn_dim", 4 * heads * head_dim))


MODELS = tuple(_model(name) for name in ("wan-1.3b", "cogvideox-5b", "wan-14b"))
TINY = Model("tiny", 2, 64, 256)  # of a dry run
TINY_ROWS = (37,)


def shapes(models: tuple[Model, ...]) -> dict[tuple[int, int], list[str]]:
    """(N, K) -> the layers that have it; every shape once."""
    found: dict[tuple[int, int], list[str]] = {}
    for model in models:
        for layer, shape in model.linears.items():
            found.setdefault(shape, []).append(f"{model.name} {layer}")
    return found
