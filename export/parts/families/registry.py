"""Parts that are exported, found by the class that config.json names. A new one is a class in a file of this folder."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil

import vditc.export.parts.families as package
from vditc.errors import InputError
from vditc.export.parts.not_exported import NOT_EXPORTED
from vditc.export.parts.part import Part
from vditc.model_dir import ModelDir


@functools.cache
def families() -> dict[str, type[Part]]:
    """Class -> how it is exported, of every file in this folder."""
    found: dict[str, type[Part]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Part) and kind.__module__ == module.__name__
            if own and not inspect.isabstract(kind) and hasattr(kind, "model_class"):
                found[kind.model_class] = kind
    return found


def part_for(source: ModelDir) -> Part:
    """How this component is exported; InputError, with the reason, for a class that is not."""
    if (kind := families().get(source.model_class)) is None:
        reason = NOT_EXPORTED.get(source.model_class, "vditc does not know this class")
        raise InputError(
            found=f"class {source.model_class}: {reason}",
            wanted=f"one of {', '.join(sorted(families()))}",
            where=str(source.transformer / "config.json"),
            fix="encode or decode with the model's own pipeline (docs/conditioning.md)",
        )
    return kind(source)
