"""Methods, found by the name that a recipe gives. A new method is one new file in this folder."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

import vditc.calibrate.methods as package
from vditc.calibrate.methods.base import Method
from vditc.errors import InputError


def methods() -> dict[str, type[Method]]:
    """Name -> method, of every file in this folder."""
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__
            if own and not inspect.isabstract(kind):
                found[kind.name] = kind
    return found


def method_for(name: str, settings: Mapping[str, Any], where: str) -> Method:
    """The method of that name with a recipe's settings; InputError, at `where`, for unknown ones or values that it does not take."""
    known = methods()
    if name not in known:
        raise InputError(found=f"method {name!r}", wanted=f"one of {', '.join(sorted(known))}", where=where, fix="correct `method`")
    fields = {field.name: field for field in dataclasses.fields(known[name])}
    for key, value in settings.items():
        if key not in fields:
            raise InputError(
                found=f"setting {key}",
                wanted=f"one of {', '.join(fields)}" if fields else "none",
                where=f"{where}, method {name}",
                fix="correct [settings]",
            )
        wanted = type(fields[key].default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise InputError(
                found=f"{key} = {value!r}", wanted=f"a {wanted.__name__}", where=f"{where}, method {name}", fix="correct [settings]"
            )
    return known[name](**settings)
