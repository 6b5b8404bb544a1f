"""A TensorRT module made from a recorded table of names: using a name that the table lacks fails, as in the real module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLES: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "runtimes" / "data" / "tensorrt_api.json").read_text())
ENUMS = (
    *("NetworkDefinitionCreationFlag", "ProfilingVerbosity", "ComputeCapability", "LayerInformationFormat", "TensorIOMode", "DataType"),
    "LayerType",
)
FUNCTIONS = {"get_plugin_registry": "IPluginRegistry"}
RETURNS = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "INetworkDefinition.get_input": "ITensor",
    "INetworkDefinition.get_layer": "ILayer",
    "OnnxParser.get_error": "ParserError",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
}


class Member(int):
    """An enumeration's member."""

    name: str


class Enum:
    """An enumeration that knows the recorded members alone."""

    def __init__(self, members: list[str]) -> None:
        self.__members__ = {}
        for i, name in enumerate(members):
            self.__members__[name] = Member(i)
            self.__members__[name].name = name

    def __getattr__(self, name: str) -> Member:
        if name in self.__members__:
            return self.__members__[name]
        raise AttributeError(name)


class Thing:
    """An object of a recorded class. `values` are its properties and what its methods return; uses are recorded by the module."""

    def __init__(self, stub: Stub, kind: str) -> None:
        object.__setattr__(self, "stub", stub)
        object.__setattr__(self, "kind", kind)

    def __getattr__(self, name: str) -> Any:
        key = f"{self.kind}.{name}"
        if name.startswith("_") or name not in self.stub.table[self.kind]:
            raise AttributeError(key)
        self.stub.used.add(key)
        if key in self.stub.values and not callable(self.stub.values[key]):
            return self.stub.values[key]

        def method(*args: Any) -> Any:
            if key in self.stub.values:
                return self.stub.values[key](*args)
            return Thing(self.stub, RETURNS[key]) if key in RETURNS else None

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.stub.table[self.kind]:
            raise AttributeError(f"{self.kind}.{name}")
        self.stub.used.add(f"{self.kind}.{name}")


class Stub:
    """The module of one release."""

    def __init__(self, release: str, values: dict[str, Any]) -> None:
        self.table, self.values, self.used = TABLES[release], values, set[str]()
        self.__version__, self.__name__ = release, "stub"

    def __getattr__(self, name: str) -> Any:
        if name not in self.table:
            raise AttributeError(name)
        if name in ENUMS:
            return Enum(self.table[name])
        if name == "IStreamWriter":
            return type(name, (), {})
        if name == "Logger":
            return LoggerClass(self.table[name])
        return lambda *args: Thing(self, FUNCTIONS.get(name, name))


class LoggerClass:
    """`Logger` is called and also holds the severities."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __getattr__(self, name: str) -> int:
        if name not in self.names:
            raise AttributeError(f"Logger.{name}")
        return 0

    def __call__(self, severity: int) -> object:
        return object()
