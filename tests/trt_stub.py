"""A TensorRT module made from the recorded API of a release (tests/record_tensorrt_api.py), as strict as the real one.

Using a name that the release lacks fails, and so does calling with other arguments, or arguments of other types, than it takes, and setting
what can only be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "runtimes" / "data" / "tensorrt_api.json").read_text())
SUBCLASSED = ("ILogger", "IProfiler", "IStreamWriter")  # what the project derives from
# Where the bindings do not say, or what is asked for as CORE.
RETURNED = {"get_plugin_registry": "IPluginRegistry", "IPluginV3.get_capability_interface": "IPluginV3OneCore"}
ALIASES = {"IParserError": "ParserError"}  # names of C++ in signatures
PYTHON: dict[str, Any] = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": (int, float),
    "buffer": (bytes, memoryview),
    "Dims": (list, tuple),
    "tuple": tuple,
    "list": list,
    "list[str]": list,
    "List[str]": list,
}


class Member(int):
    """An enumeration's member."""

    name: str
    kind: str


class Enum:
    """An enumeration that knows the recorded members alone."""

    def __init__(self, kind: str, members: list[str]) -> None:
        self.__members__ = {name: _member(kind, i, name) for i, name in enumerate(members)}

    def __getattr__(self, name: str) -> Member:
        if name in self.__members__:
            return self.__members__[name]
        raise AttributeError(name)


def _member(kind: str, value: int, name: str) -> Member:
    made = Member(value)
    made.name, made.kind = name, kind
    return made


class Thing:
    """An object of a recorded class. `values` are its properties and what its methods return; uses are recorded by the module."""

    def __init__(self, stub: Stub, kind: str) -> None:
        object.__setattr__(self, "stub", stub)
        object.__setattr__(self, "kind", kind)

    def __getattr__(self, name: str) -> Any:
        stub, key, api = self.stub, f"{self.kind}.{name}", self.stub.table[self.kind]
        if name in api["properties"]:
            stub.used.add(key)
            found = stub.values.get(key)
            return found() if callable(found) else found
        if name not in api["methods"]:
            raise AttributeError(key)
        stub.used.add(key)

        def method(*args: Any, **named: Any) -> Any:
            returned = stub.take(key, api["methods"][name], args, named)
            stub.calls.append((key, args))
            if key in stub.values:
                return stub.values[key](*args, **named)
            return stub.thing(RETURNED.get(key, returned))

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # of a layer: what kind it is
            object.__setattr__(self, "kind", value.name)
            return
        properties = self.stub.table[self.kind]["properties"]
        if name not in properties or not properties[name].startswith("rw "):
            raise AttributeError(f"{self.kind}.{name} cannot be set")
        key = f"{self.kind}.{name}"
        assert self.stub.fits(value, properties[name].removeprefix("rw ")), f"{key} = {value!r}; wanted {properties[name]}"
        self.stub.used.add(key)
        self.stub.calls.append((key, (value,)))


class Stub:
    """The module of one release. `calls`: (Class.method or Class.property, arguments) of every call and every property that was set."""

    def __init__(self, release: str, values: dict[str, Any]) -> None:
        self.table, self.values, self.used, self.calls = TABLES[release], values, set[str](), list[tuple[str, tuple[Any, ...]]]()
        self.loggers: list[Any] = []  # that a Runtime was made with
        self.__version__, self.__name__ = f"{release.removeprefix('rtx-')}.0", "stub"

    def __getattr__(self, name: str) -> Any:
        if name not in self.table:
            raise AttributeError(name)
        api = self.table[name]
        if "members" in api:
            return Enum(name, api["members"])
        if name in SUBCLASSED:
            return type(name, (), _constants(api))
        return Class(self, name)

    def take(self, key: str, overloads: list[str], args: tuple[Any, ...], named: dict[str, Any]) -> str:
        """The type that a call returns; AssertionError unless one of the overloads takes the arguments."""
        for overload in overloads:
            parameters, _, returned = overload.rpartition("-> ")
            if self._takes(parameters.strip(), args, named):
                return returned
        raise AssertionError(f"{key}({', '.join(map(repr, args))}, {named}); wanted {' or '.join(overloads)}")

    def _takes(self, parameters: str, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        told = [p.partition(": ") for p in parameters.split(", ")] if parameters else []
        names = [name for name, _, _ in told]
        if len(args) > len(told) or set(named) - set(names[len(args) :]):
            return False
        given = {**dict(zip(names, args, strict=False)), **named}
        return all(
            self.fits(given[name], kind.removesuffix(" = ...")) if name in given else kind.endswith(" = ...") for name, _, kind in told
        )

    def fits(self, value: Any, kind: str) -> bool:
        """Whether a value is of a recorded type; types that are not recorded take anything."""
        if kind in self.table and "members" in self.table[kind]:
            return isinstance(value, Member) and value.kind == kind
        if kind == "Severity":
            return isinstance(value, Member) and value.kind == kind
        if kind in self.table:
            found = value.kind if isinstance(value, Thing) else type(value).__mro__[1].__name__
            return found in (kind, kind.removeprefix("I"))
        if kind not in PYTHON:
            return True
        return isinstance(value, PYTHON[kind]) and not (kind == "int" and isinstance(value, (bool, Member)))

    def thing(self, kind: str) -> Any:
        """An object of a type that a call returns, if that is recorded; a bool is True."""
        kind = ALIASES.get(kind, kind)
        if kind in self.table and "methods" in self.table[kind]:
            return Thing(self, kind)
        return True if kind == "bool" else [] if kind.lower().startswith("list[") else None


class Class:
    """A class, or a function of the module: it is called, and a class may hold constants."""

    def __init__(self, stub: Stub, name: str) -> None:
        self.stub, self.name, self.api = stub, name, stub.table[name]

    def __getattr__(self, name: str) -> Member:
        found = _constants(self.api)
        if name not in found:
            raise AttributeError(f"{self.name}.{name}")
        return found[name]

    def __call__(self, *args: Any, **named: Any) -> Any:
        returned = self.stub.take(self.name, self.api["call"], args, named)
        self.stub.loggers += args if self.name == "Runtime" else []
        return Thing(self.stub, RETURNED.get(self.name, self.name if "methods" in self.api else returned))


def _constants(api: dict[str, Any]) -> dict[str, Member]:
    """Severities of loggers."""
    return {name: _member("Severity", i, name) for i, name in enumerate(api["constants"])} if "constants" in api else {}
