"""The plugin library inside of a TensorRT process: load it, and see that a network has its plugins.

Nothing is imported here but the standard library and errors: the worker process stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vditc.errors import VditcError

FIELDS = ("name", "plugin_version", "plugin_namespace")  # of a creator
Named = tuple[str, str, str]  # (operator, version, namespace)


def load_plugins(trt: Any, library: str, wanted: Iterable[Named]) -> None:
    """Make the registry of `trt` know `wanted`: by the library, unless the process has them (preloaded, or loaded for another engine).

    VditcError when the library does not load or lacks one of them.
    """
    registry = trt.get_plugin_registry()
    if not (missing := _missing(registry, wanted)):
        return
    loaded = registry.load_library(library)
    if loaded is None or (missing := _missing(registry, missing)):
        raise VditcError(
            found="a library that does not load" if loaded is None else f"no {_listed(missing)} in it",
            wanted=f"the plugins {_listed(missing)}",
            where=f"{library}, {trt.__name__} {trt.__version__}",
            fix="build it for this machine: vditc plugins build",
        )


def check_network(trt: Any, network: Any, wanted: Mapping[str, Named], where: str) -> None:
    """VditcError unless each of the nodes became the plugin of its operator; `wanted`: node -> operator, version and namespace.

    Where TensorRT does not take a plugin it inlines the operator's body, and is silent. Plugins of others may be in the network too.
    """
    layers = (network.get_layer(i) for i in range(network.num_layers))
    found = {str(layer.name): _plugin(trt, layer) for layer in layers if layer.type == trt.LayerType.PLUGIN_V3}
    if not (missing := [node for node, named in wanted.items() if found.get(node) != tuple(named)]):
        return
    said = [node + (f" ({_listed([found[node]])} instead)" if node in found else "") for node in missing[:5]]
    raise VditcError(
        found=f"{len(wanted) - len(missing)} of them in the network; not there: {', '.join(said)}{' ...' if len(missing) > 5 else ''}",
        wanted=f"{len(wanted)} plugins, one for each operator of the plugin library",
        where=f"{where}, {trt.__name__} {trt.__version__}",
        fix="lower the graph again for this target: before TensorRT 10.7 a graph must hold no bodies of such operators",
    )


def _plugin(trt: Any, layer: Any) -> Named:
    """What a plugin's layer computes."""
    layer.__class__ = trt.IPluginV3Layer  # get_layer gives each layer as an ILayer
    core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return str(core.plugin_name), str(core.plugin_version), str(core.plugin_namespace)


def _missing(registry: Any, wanted: Iterable[Named]) -> list[Named]:
    there = {tuple(str(getattr(creator, field)) for field in FIELDS) for creator in registry.all_creators}
    return [one for one in wanted if one not in there]


def _listed(plugins: Iterable[Named]) -> str:
    return ", ".join(f"{namespace}.{name} version {version}" for name, version, namespace in plugins)
