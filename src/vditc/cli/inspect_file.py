"""What `vditc inspect` says of one graph or one engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from vditc.cli.app import console
from vditc.errors import VditcError

_FEW = 8  # of a long list


def graph_facts(path: Path) -> dict[str, Any]:
    """Of an ONNX file: see `vditc.graph_passes.facts.graph_facts`; and its size with that of its external data."""
    from vditc.graph_passes.facts import graph_facts as facts_of

    return facts_of(path)


def plan_facts(path: Path) -> dict[str, Any]:
    """Of an engine: size, what it was built with (engine.json), what it computes, and `read_from`, where that is known from.

    A plan of TensorRT-RTX tells by itself what it computes; of one of TensorRT, layers.json beside it does, or built.json of the device
    that built it. VditcError for a plan of which nothing of this is there.
    """
    from vditc.runtimes.built_with import BuiltWith
    from vditc.runtimes.fusion import summary
    from vditc.runtimes.plan_text import program, read_plan

    said, folder = BuiltWith.read(path.parent), path.parent
    facts: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size}
    if said is not None:
        facts["built_with"] = {**dataclasses.asdict(said), "options": said.options.to_json()}
    if said is None or said.module != "tensorrt":
        try:
            engine = program(read_plan(path))
            return {**facts, "read_from": "plan text", "summary": summary(engine), **dataclasses.asdict(engine)}
        except VditcError:
            if said is None:
                raise
    if (layers := folder / "layers.json").is_file():
        data = json.loads(layers.read_text())
        data = data["segments"][path.stem] if "segments" in data else data
        return {
            **facts,
            "read_from": f"layers.json ({data['read_from']})",
            "summary": summary(_program(data["program"])),
            **data["program"],
        }
    if (built := folder / "built.json").is_file():
        data = json.loads(built.read_text())
        return {**facts, "read_from": "built.json", "summary": _summary(data["engine"]), "device": data["device"]}
    raise VditcError(
        found=f"a plan of {said}, and neither layers.json nor built.json beside it",
        wanted="what the engine computes",
        where=str(path),
        fix="inspect it in the folder that it was built in, or in its bundle",
    )


def show_graph(path: Path, facts: Mapping[str, Any]) -> None:
    """For people."""
    stored = facts["initializer_bytes"]
    rows = {
        "size": f"{_bytes(facts['bytes'])}" + (f", and {_bytes(facts['data_bytes'])} in {facts['data']}" if facts["data"] else ""),
        "made by": facts["made_by"],
        "recipe": facts["recipe"] or "not known",
        "operator sets": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts["opset"].items())
        + f"; IR {facts['ir_version']}",
        "inputs": "\n".join(f"{name} {kind.replace(chr(39), '')}" for name, kind in facts["inputs"].items()),
        "outputs": ", ".join(facts["outputs"]),
        "steps": "any" if facts["steps"] is None else f"a table of {facts['steps']}, instead of the timestep",
        "weights": ", ".join(f"{_bytes(count)} of {kind}" for kind, count in stored.items()),
        "matrix products": "\n".join(f"{n} × {kinds}" for kinds, n in facts["matrix_products"].items()),
        "plugin operators": "\n".join(f"{n} × {name}" for name, n in facts["plugins"].items()) or "none",
        "quantized layers": "\n".join(f"{n} × {scheme}" for scheme, n in facts["layers"].items()) or "none",
        "nodes": f"{sum(facts['nodes'].values())}: " + ", ".join(f"{n} {op}" for op, n in facts["nodes"].items()),
    }
    _show(path, rows)


def show_plan(path: Path, facts: Mapping[str, Any]) -> None:
    """For people."""
    said, summary = facts.get("built_with"), facts["summary"]
    options = ", ".join(f"{name} {value}" for name, value in said["options"].items()) if said else ""
    rows = {
        "size": _bytes(facts["bytes"]),
        "built with": f"{said['module']} {said['version']}" if said else "not known: no engine.json beside it",
        "GPUs": ", ".join(said["arch"]) if said else "",
        "build options": (options or "defaults") if said else "",
        "weights": f"stripped; those of {said['weights']} are put in when it is loaded" if said and said["weights"] else "",
        "read from": facts["read_from"],
        "matrix products": "\n".join(f"{n} × {kind}" for kind, n in summary["products"].items()) or "none",
        "fused attentions": str(summary["attentions"]),
        "plugins": "\n".join(f"{n} × {name}" for name, n in summary["plugins"].items()) or "none",
        "other kernels": "" if summary.get("kernels") is None else str(summary["kernels"]),
        "kernels that write codes": "\n".join(
            f"{n} × {what or 'others, such as weights that are unpacked'}"
            for what, n in summary.get("kernels_that_write_codes", {}).items()
        ),
        "constants": ", ".join(f"{_bytes(count)} of {kind}" for kind, count in facts.get("constant_bytes", {}).items()),
        "tensors of tokens by tokens": "\n".join(summary.get("repeated_sizes", [])[:_FEW]),
    }
    if "device" in facts:
        from vditc.engine_facts import device_words

        rows["built on"] = device_words(facts["device"])
    _show(path, rows)


def _show(path: Path, rows: Mapping[str, str]) -> None:
    table = Table(title=str(path), title_justify="left", show_header=False)
    for label, words in rows.items():
        if words:
            table.add_row(label, words)
    console.print(table, markup=False)


def _program(data: Mapping[str, Any]) -> Any:
    """That of layers.json."""
    from vditc.runtimes.engine_program import EngineProgram, Gemm, Kernel

    def kernels(name: str) -> tuple[Kernel, ...]:
        return tuple(Kernel(k["name"], tuple(k["nodes"]), tuple(k["outputs"])) for k in data[name])

    return EngineProgram(
        source="layers.json",
        gemms=tuple(Gemm(**{**gemm, "nodes": tuple(gemm["nodes"])}) for gemm in data["gemms"]),
        attentions=kernels("attentions"),
        plugins=kernels("plugins"),
        kernels=kernels("kernels"),
        constant_bytes=data["constant_bytes"],
        repeated_sizes=tuple(data["repeated_sizes"]),
    )


def _summary(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a device wrote down."""
    return {
        "products": engine.get("gemms", {}),
        "attentions": engine.get("attentions", 0),
        "plugins": engine.get("plugin_operators", {}),
        "fused": engine.get("fused", {}),
    }


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count} bytes"
