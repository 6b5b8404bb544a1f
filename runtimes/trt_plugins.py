"""The plugin library inside of a TensorRT process: load it, and see that a network has its plugins.

Nothing is imported here but the standard library and errors: the worker process stays small.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def check_network(trt: Any, network: Any, nodes: Iterable[str], where: str) -> None:
    """VditcError unless each of the nodes became a plugin: where TensorRT does not take the plugin it inlines the body, and is silent."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    plugins = [str(layer.name) for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    wanted = list(nodes)
    if len(plugins) == len(wanted):
        return
    inlined = [name for name in wanted if name not in plugins]
    raise VditcError(
        found=f"{len(plugins)} plugins in the network"
        + (f"; not there: {', '.join(inlined[:5])}{' ...' if len(inlined) > 5 else ''}" if inlined else ""),
        wanted=f"{len(wanted)}, one for each operator of the plugin library",
        where=f"{where}, {trt.__name__} {trt.__version__}",
        fix="lower the graph again for this target: before TensorRT 10.7 a graph must hold no bodies of such operators",
    )


def _missing(registry: Any, wanted: Iterable[Named]) -> list[Named]:
    there = {tuple(str(getattr(creator, field)) for field in FIELDS) for creator in registry.all_creators}
    return [one for one in wanted if one not in there]


def _listed(plugins: Iterable[Named]) -> str:
    return ", ".join(f"{namespace}.{name} version {version}" for name, version, namespace in plugins)
