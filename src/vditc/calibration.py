"""The calibration file: integer codes, scales and why each layer is as it is. One safetensors file, no fake-quantized float.

Tensors, per quantized layer L (weight [N, K]):
    L.codes             int8 [N, K], or for 3- and 4-bit types uint8 [N * K / 2], two a byte, first in the low nibble
    L.scale             float16 or float32, [] | [N] | [N, K / group_size]
    L.activation_scale  float32 [] or [steps]; only for static activations
Metadata key "vditc": JSON of `Calibration` without the tensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.safetensors_file import read_header, write_tensors
from vditc.scheme import QTensor, Scheme, pack_int4, unpack_int4

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCalibration:
    """A quantized layer."""

    role: str
    scheme: Scheme
    weight: QTensor
    activation_scale: npt.NDArray[np.float32] | None = None  # [] or [steps]

    def __post_init__(self) -> None:
        act = self.scheme.activation
        static = act is not None and not act.dynamic
        if static != (self.activation_scale is not None):
            raise ValueError(f"scheme {self.scheme}: activation_scale is {'missing' if static else 'superfluous'}")
        if act is not None and self.activation_scale is not None and self.activation_scale.ndim != int(act.per_step):
            raise ValueError(f"scheme {self.scheme}: activation_scale has shape {list(self.activation_scale.shape)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """A layer that stays in floating point."""

    role: str
    reason: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything the exporter needs besides the checkpoint."""

    model_class: str
    model_digest: str
    recipe: str
    recipe_digest: str
    method: str
    sigmas: tuple[float, ...]  # [steps + 1], the schedule of the per-step tables
    timesteps: tuple[float, ...]  # [steps]
    guidance_scale: float
    layers: Mapping[str, LayerCalibration]
    kept: Mapping[str, Kept]
    statistics: Mapping[str, Any]  # what the observers saw, plain data

    @property
    def mean_bits(self) -> float:
        """Mean bits per weight over all layers, scales included; a kept layer counts 16 (its stored type)."""
        stored = sum(layer.weight.stored_bits for layer in self.layers.values())
        kept = sum(int(np.prod(k.shape)) for k in self.kept.values())
        total = kept + sum(layer.weight.codes.size for layer in self.layers.values())
        return (stored + 16 * kept) / total

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; the same calibration gives the same bytes."""
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name, layer in self.layers.items():
            packed = layer.weight.spec.qtype.bits <= 4
            tensors[f"{name}.codes"] = pack_int4(layer.weight.codes) if packed else layer.weight.codes
            tensors[f"{name}.scale"] = layer.weight.scale
            if layer.activation_scale is not None:
                tensors[f"{name}.activation_scale"] = layer.activation_scale
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("layers", "kept")}
        data |= {
            "schema": SCHEMA,
            "layers": {
                n: {"role": c.role, "scheme": c.scheme.to_json(), "shape": list(c.weight.codes.shape)} for n, c in self.layers.items()
            },
            "kept": {n: dataclasses.asdict(k) for n, k in self.kept.items()},
        }
        write_tensors(path, tensors, {"vditc": json.dumps(data, sort_keys=True, separators=(",", ":"))})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read and check a file; codes are memory-mapped until they are unpacked."""
        entries, metadata = read_header(path)
        try:
            data = json.loads(metadata["vditc"])
        except (KeyError, ValueError) as error:
            raise InputError(
                found="no vditc metadata", wanted="a calibration file", where=str(path), fix="write it with `vditc calibrate`"
            ) from error
        if data.pop("schema") != SCHEMA:
            raise InputError(found="another schema", wanted=str(SCHEMA), where=str(path), fix="calibrate again")
        layers = {}
        for name, info in data.pop("layers").items():
            scheme, shape = Scheme.from_json(info["scheme"]), tuple(info["shape"])
            codes = entries[f"{name}.codes"].read()
            if scheme.weight.qtype.bits <= 4:
                codes = unpack_int4(codes, shape)
            act = entries.get(f"{name}.activation_scale")
            layers[name] = LayerCalibration(
                role=info["role"],
                scheme=scheme,
                weight=QTensor(codes, entries[f"{name}.scale"].read(), scheme.weight),
                activation_scale=None if act is None else act.read(),
            )
        kept = {n: Kept(role=k["role"], reason=k["reason"], shape=tuple(k["shape"])) for n, k in data.pop("kept").items()}
        for key in ("sigmas", "timesteps"):
            data[key] = tuple(data[key])
        return cls(layers=layers, kept=kept, **data)
