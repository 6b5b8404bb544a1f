"""A small random model of a family, as a model directory, and the sizes to try it at."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vditc.export.adapters.registry import adapters
from vditc.model_dir import ModelDir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One model. `shapes`: three sets of axis sizes, in which every axis has at least two different values."""

    name: str
    config: Mapping[str, Any]  # transformer/config.json, `_class_name` included; lists long enough to be stamped (4 iterations)
    shapes: tuple[Mapping[str, int], ...]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other JSON files, path -> content
    patch_tolerance: float = 1e-5  # relative L2 of the patched module's output against the module as it is
    tolerance: float = 1e-5  # the same of ONNX Runtime's output
    # "fp16", "w8a8", "w4a16": part of the message with which no engine can be built, and whose limit that is
    no_engine: Mapping[str, str] = dataclasses.field(default_factory=dict)

    # Inputs that the time meets, a regular expression for each place, behind which the time path stays live.
    live: tuple[str, ...] = ()

    first: bool = False  # of its family's file

    def __str__(self) -> str:
        return self.name


def cases() -> list[Case]:
    """The cases of every file in tests/families."""
    found: list[Case] = []
    for file in sorted((Path(__file__).parent / "families").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"families_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [dataclasses.replace(case, first=case is module.CASES[0]) for case in module.CASES]
    return found


def save(case: Case, folder: Path, seed: int = 0) -> ModelDir:
    """Write the model with random float32 weights; tables and biases, which start at zero, are random too."""
    adapter = adapters()[case.config["_class_name"]]
    torch.manual_seed(seed)
    model = adapter.build(case.config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Initialised weights of wide layers are small too.
            least = 0.0 if parameter.ndim < 2 else min(0.01, 0.1 * parameter[0].numel() ** -0.5)
            if parameter.ndim < 2 or not parameter.any() or parameter.std() < least:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    transformer = folder / "transformer"
    transformer.mkdir(parents=True)
    weights = {n: t.clone().contiguous() for n, t in model.state_dict().items()}
    save_file(weights, transformer / "diffusion_pytorch_model.safetensors")
    (transformer / "config.json").write_text(json.dumps(dict(case.config)))
    for name, content in {"model_index.json": {"_class_name": "Pipeline"}, **case.extra}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return ModelDir.open(folder)
