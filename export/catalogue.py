"""The families that can be compiled, described at the sizes of their published models."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from vditc.adapter import ModelAdapter
from vditc.errors import InputError
from vditc.export.adapters.registry import adapters
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.model_dir import ModelDir


def families() -> list[dict[str, Any]]:
    """Name, class, what it is, axes (in words and short), presets and lists of blocks of every family, by name."""
    return [_family(adapter) for adapter in sorted(adapters().values(), key=lambda a: a.name)]


def _family(adapter: ModelAdapter) -> dict[str, Any]:
    about = {"family": adapter.name, "class": adapter.model_class, "what": adapter.description}
    presets = {name: list(clip) for name, clip in adapter.presets.items()}
    try:
        source = _published(adapter)
    except InputError as error:  # the installed diffusers has no such class
        return {**about, "axes": {}, "short": {}, "presets": presets, "blocks": {}, "missing": error.found}
    axes = adapter.sizes(source).axes
    return {
        **about,
        "axes": {name: axis.words for name, axis in axes.items()},
        "short": {name: axis.short for name, axis in axes.items()},
        "presets": presets,
        "blocks": {name: loop.count * period for loop in adapter.loops(source.config) for name, period in loop.modules.items()},
    }


def _published(adapter: ModelAdapter) -> ModelDir:
    """A model directory without weights, of the published model's config: mostly what the class has by default."""
    kind = adapter.class_() if isinstance(adapter, DiffusersAdapter) else type(adapter)
    parameters = inspect.signature(kind.__init__).parameters.values()
    config = {p.name: p.default for p in parameters if p.default is not p.empty}
    return ModelDir(Path("-"), {"_class_name": adapter.model_class, **config, **adapter.published}, {}, None, lambda: "")
