"""Methods, found by the name that a recipe gives. A new method is one new file in this folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import vditc.calibrate.methods as package
from vditc.calibrate.methods.base import Method
from vditc.errors import InputError


def methods() -> dict[str, Method]:
    """Name -> method, of every file in this folder."""
    found: dict[str, Method] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__
            if own and not inspect.isabstract(kind):
                found[kind.name] = kind()
    return found


def method_for(name: str, where: str) -> Method:
    """The method of that name; InputError, at `where`, for an unknown one."""
    known = methods()
    if name not in known:
        raise InputError(found=f"method {name!r}", wanted=f"one of {', '.join(sorted(known))}", where=where, fix="correct `method`")
    return known[name]
