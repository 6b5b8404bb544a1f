"""Adapters, found by the class that config.json names. A new family is one new file in this folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import vditc.export.adapters as package
from vditc.adapter import ModelAdapter
from vditc.errors import InputError
from vditc.export.not_exported import NOT_EXPORTED
from vditc.model_dir import ModelDir


def adapters() -> dict[str, ModelAdapter]:
    """diffusers class -> adapter, of every file in this folder."""
    found: dict[str, ModelAdapter] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, ModelAdapter) and kind.__module__ == module.__name__
            if own and not inspect.isabstract(kind) and hasattr(kind, "model_class"):
                found[kind.model_class] = kind()
    return found


def adapter_for(source: ModelDir) -> ModelAdapter:
    """The adapter of a model directory; InputError for an unknown class."""
    known = adapters()
    if source.model_class not in known:
        reason = NOT_EXPORTED.get(source.model_class)
        raise InputError(
            found=f"class {source.model_class}" + (f", which is not exported: {reason}" if reason else ""),
            wanted=f"one of {', '.join(known)}",
            where=str(source.transformer / "config.json"),
            fix="see `vditc models`; docs/adding_a_model.md shows how to add one",
        )
    return known[source.model_class]
