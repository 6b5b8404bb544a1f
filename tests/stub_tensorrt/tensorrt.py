"""`import tensorrt` where there is none: the recorded names of one release, and engines that compute what device.json expects.

STUB_RELEASE: 10.3 unless told. STUB_FAULT: "full" (the disk), "kill:NAME" (killed while it builds that plan) or "half" (products in half).
A "plan" is JSON of what the builder was given.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trt_stub import Stub

RELEASE, FAULT = os.environ.get("STUB_RELEASE", "10.3"), os.environ.get("STUB_FAULT", "")
known: dict[str, Any] = {"shapes": {}, "pools": {}, "plugins": None}


def _graph() -> dict[str, Any]:
    """The graph of device.json that is being built: the worker's request says which, and where."""
    graphs = json.loads((Path(_request()["plan"]).parent / "device.json").read_text())["graphs"]
    return next(g for g in graphs if Path(g["lowered"]).name == Path(known["lowered"]).name and _same(g))


def _same(graph: dict[str, Any]) -> bool:
    return f".{graph['name']}.plan" in Path(_request()["plan"]).name


def _request() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return found


def _built(*_: Any) -> bytes:
    graph = _graph()
    if FAULT == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if f"kill:{graph['name']}" == FAULT:
        Path(_request()["plan"]).write_bytes(b"half of an engine")
        os.kill(os.getpid(), signal.SIGKILL)
    set_ = {key: args[0] for key, args in stub.calls if key == "IBuilderConfig.builder_optimization_level"}
    return json.dumps({**known, "name": graph["name"], "flags": flags, **set_}).encode()


def _tensor(kind: str) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": [2, 8], "Format/Datatype": kind}


def _layer(name: str, kind: str, inputs: list[str], output: str) -> dict[str, Any]:
    metadata = f"[ONNX Layer: {name}]"
    return {"Name": name, "LayerType": kind, "Inputs": [*map(_tensor, inputs)], "Outputs": [_tensor(output)], "Metadata": metadata}


def _report(*_: Any) -> str:
    asked = _graph()["expectation"]
    low = FAULT != "half"
    layers = []
    for q in asked["quantized"]:
        narrow = q["activation"] is not None and low
        layers.append(_layer(q["node"], "gemm", ["Int8", "Int8"] if narrow else ["Half", "Half"], "Float" if narrow else "Half"))
    layers += [_layer(node, "gemm", ["Half", "Half"], "Half") for node in asked["floating"]]
    layers += [{**_layer(node, "kgen", ["Half"], "Half"), "Name": f"_gemm_mha_v2_{i}"} for i, node in enumerate(asked["attentions"])]
    layers += [_layer(node, "PluginV3", ["Int8"], "Half") for node in asked["plugins"]]
    return json.dumps({"Layers": layers or [_layer("seen", "convolution", ["Half", "Half"], "Half")]})  # of a VAE


def _parsed(path: str) -> bool:
    known["lowered"] = path
    plugins = list(_graph()["expectation"]["plugins"].items())
    stub.values["INetworkDefinition.num_layers"] = len(plugins)
    stub.values["INetworkDefinition.get_layer"] = lambda i: _Named(*plugins[i])
    stub.values["INetworkDefinition.num_inputs"] = len(_graph()["shapes"])
    stub.values["INetworkDefinition.get_input"] = lambda i: _Named(list(_graph()["shapes"])[i])
    return Path(path).is_file()


class _Named:
    """An input, or the layer of a plugin."""

    def __init__(self, name: str, operator: str = "") -> None:
        self.name, self.type = name, stub.LayerType.PLUGIN_V3
        self.plugin_name, self.plugin_version, self.plugin_namespace = operator, "1", "vditc"

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "__class__":  # which says that the layer is a plugin's
            object.__setattr__(self, name, value)

    @property
    def plugin(self) -> _Named:
        return self

    def get_capability_interface(self, kind: Any) -> _Named:
        return self


def _loaded(path: str) -> object:
    known["plugins"] = path
    operators = {"QAttention", "QLinear", "QuantizeToken"}
    for operator in operators:
        creators.append(_creator(operator))
    return object()


def _creator(operator: str) -> Any:
    made = type("Creator", (), {})()
    made.name, made.plugin_version, made.plugin_namespace = operator, "1", "vditc"
    return made


creators: list[Any] = []
flags: list[str] = []
stub = Stub(
    RELEASE,
    {
        "OnnxParser.parse_from_file": _parsed,
        "OnnxParser.num_errors": 0,
        "Builder.build_serialized_network": _built,
        "Builder.build_serialized_network_to_stream": lambda network, config, writer: writer.write(_built()) > 0,
        "IBuilderConfig.set_flag": lambda flag: flags.append(flag.name),
        "ITimingCache.serialize": lambda: b"times",
        "IBuilderConfig.set_memory_pool_limit": lambda pool, limit: known["pools"].__setitem__(pool.name, limit),
        "IOptimizationProfile.set_shape": lambda name, *sizes: known["shapes"].__setitem__(name, sizes),
        "IPluginRegistry.all_creators": creators,
        "IPluginRegistry.load_library": _loaded,
        "EngineInspector.get_engine_information": _report,
    },
)
sys.modules[__name__] = stub  # type: ignore[assignment]
