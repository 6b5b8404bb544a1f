"""The calibration file: integer codes, scales and why each layer is as it is. One safetensors file, no fake-quantized float.

Tensors, per quantized layer L (weight [N, K]):
    L.codes             int8 or F8_E4M3 [N, K], or for 3- and 4-bit types uint8 [N * K / 2], two a byte, first in the low nibble
    L.scale             float16 or float32, [] | [N] | [N, K / group_size]; for FP4 F8_E4M3 [N, K / 16], in units of
    L.tensor_scale      float32 []; only for FP4
    L.zero_point        float32 [N], in units of codes; only for asymmetric weights
    L.activation_scale  float32 [] or [steps]; only for static activations, and FP4's scale of the tensor
    L.activation_clip   float32 [steps]; what a dynamic range is multiplied with before it becomes a scale
    L.shift             float32 [K], taken from the input before anything else (vditc.transform)
    L.balance           float32 [K]; the codes are of W / balance, rotated, less the low-rank branch
    L.output_balance    float32 [n], of a v whose W is balanced and rotated in n output channels first, for the layers behind attention
    L.low_rank.down     float16 [R, K]
    L.low_rank.up       float16 [N, R]
    L.bias_correction   float32 [N], and a rank-1 term of the output (vditc.correction):
    L.compensation.alpha float32 [K], L.compensation.beta float32 [N], L.compensation.frames float32 [latent frames]
Per attention module M whose calibration the recipe asked for (vditc.attention):
    M.attention.v_absmax  float32 [heads, channels]; the rest is in the metadata
Metadata key "vditc": JSON of `Calibration` without the tensors.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.attention import AttentionCalibration
from vditc.correction import ALPHA, BETA, BIAS, FRAMES, NONE, Correction, FrameOrder
from vditc.errors import InputError
from vditc.files import sha256
from vditc.float_codes import code_dtype
from vditc.numerics import QType
from vditc.qweight import StoredWeight
from vditc.safetensors_file import TensorEntry, read_header
from vditc.safetensors_writer import tensor_file
from vditc.schedule import Schedule
from vditc.scheme import QWeight, Scheme, scale_shape
from vditc.threads import ahead
from vditc.transform import BALANCE, DOWN, IDENTITY, OUTPUT_BALANCE, SHIFT, UP, OutputTransform, Transform

Array = npt.NDArray[Any]
SCHEMA = 3
READ = (2, 3)  # 1 had schedules without signal and noise; in 2 no layer's output is transformed
V_ABSMAX = ".attention.v_absmax"
# A layer's tensors beside its weight.
TABLES = ("activation_scale", "activation_clip", SHIFT, BALANCE, DOWN, UP, BIAS, ALPHA, BETA, FRAMES, OUTPUT_BALANCE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCalibration:
    """A quantized layer."""

    role: str
    scheme: Scheme
    weight: QWeight  # read or computed whenever it is asked for
    activation_scale: npt.NDArray[np.float32] | None = None  # [] or [steps]
    transform: Transform = IDENTITY  # of the input, before it is quantized; `weight` is what is left of the weight then
    activation_clip: npt.NDArray[np.float32] | None = None  # [steps]
    correction: Correction = NONE
    output: OutputTransform | None = None  # of the output; `weight` is of the weight that gives it

    @property
    def stored_bits(self) -> int:
        """Bits that codes, scales, the low-rank branch and the rank-1 term take in an artefact."""
        t, c = self.transform, self.correction
        return self.weight.stored_bits + sum(8 * f.nbytes for f in (t.down, t.up, c.alpha, c.beta) if f is not None)

    @property
    def tables(self) -> dict[str, Array]:
        """Float arrays beside the weight, by their names in the file."""
        both = (("activation_scale", self.activation_scale), ("activation_clip", self.activation_clip))
        own = {name: array for name, array in both if array is not None}
        own |= {} if self.output is None else {OUTPUT_BALANCE: self.output.balance}
        return own | self.transform.tensors() | self.correction.tensors()

    @property
    def per_step(self) -> bool:
        """Whether something of it depends on the sampling step."""
        return self.activation_clip is not None or (self.activation_scale is not None and self.activation_scale.ndim == 1)

    def makes(self, behind: LayerCalibration) -> bool:
        """Whether its output is transformed as that layer takes its input."""
        channels, outputs = behind.weight.shape[1], self.weight.shape[0]
        return self.output is not None and self.output.makes(behind.transform, channels, outputs)

    def __post_init__(self) -> None:
        if self.output is not None:
            self.output.check(self.weight.shape[0])
        act = self.scheme.activation
        static = act is not None and act.ranged
        if static != (self.activation_scale is not None):
            raise ValueError(f"scheme {self.scheme}: activation_scale is {'missing' if static else 'superfluous'}")
        if act is not None and self.activation_scale is not None and self.activation_scale.ndim != int(act.per_step):
            raise ValueError(f"scheme {self.scheme}: activation_scale has shape {list(self.activation_scale.shape)}")
        clip = self.activation_clip
        if clip is not None and (act is None or act.ranged or clip.ndim != 1 or not ((clip > 0) & (clip <= 1)).all()):
            raise ValueError(f"scheme {self.scheme}: an activation_clip that is not [steps] in (0, 1], or without dynamic activations")


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
    schedule: Schedule | None  # of the per-step tables; None, like the guidance, where nothing depends on how the model is sampled
    guidance_scale: float | None
    layers: Mapping[str, LayerCalibration]
    kept: Mapping[str, Kept]
    statistics: Mapping[str, Any]  # what the observers saw, plain data
    latent_frames: int | None = None  # the only number of them that the layers' per-frame factors are for; None without such factors
    attention: Mapping[str, AttentionCalibration] = dataclasses.field(default_factory=dict)  # by module, as measured
    file: Path | None = dataclasses.field(default=None, compare=False)  # where it was read from

    @functools.cached_property
    def digest(self) -> str | None:
        """sha256 of the file, read in pieces; None for a calibration that is in no file."""
        return None if self.file is None else sha256(self.file)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the model is told at each step; () without a schedule."""
        return () if self.schedule is None else tuple(self.schedule.timesteps.tolist())

    @property
    def mean_bits(self) -> float:
        """Mean bits per weight over all layers, scales included; a kept layer counts 16 (its stored type)."""
        stored = sum(layer.stored_bits for layer in self.layers.values())
        kept = sum(math.prod(k.shape) for k in self.kept.values())
        total = kept + sum(layer.weight.count for layer in self.layers.values())
        return (stored + 16 * kept) / total

    def check_outputs(self) -> None:
        """InputError unless inputs that layers take as transformed are what others give out, and nothing else is given out so."""
        made = [(v, behind) for behind in self.layers.values() for v in behind.transform.made_by]
        wrong = [v for v, behind in made if v not in self.layers or not self.layers[v].makes(behind)]
        wrong += [name for name, layer in self.layers.items() if layer.output is not None and name not in {v for v, _ in made}]
        if wrong:
            raise InputError(
                found=f"layer {min(wrong)}, whose output is not transformed as the layers behind attention have it",
                wanted="both alike",
                where=f"calibration {self.file or self.recipe}",
                fix="calibrate again",
            )

    def save(self, path: Path, advance: Callable[[], None] = lambda: None) -> None:
        """Write the file, whole or not at all; the same calibration gives the same bytes. Calls `advance` after each layer.

        Layers are computed as they are written; two weights are in memory at a time. VditcError when the disk is full.
        """
        tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for name, layer in self.layers.items():
            weight = layer.weight
            packed = weight.spec.qtype.bits <= 4
            tensors[f"{name}.codes"] = (
                (np.dtype(np.uint8), (weight.count // 2,)) if packed else (code_dtype(weight.spec.qtype), weight.shape)
            )
            tensors[f"{name}.scale"] = weight.scale_dtype, scale_shape(weight.shape, weight.spec)
            if not weight.spec.symmetric:
                tensors[f"{name}.zero_point"] = np.dtype(np.float32), (weight.shape[0],)
            if weight.spec.qtype is QType.FP4_E2M1:
                tensors[f"{name}.tensor_scale"] = np.dtype(np.float32), ()
            tensors |= {f"{name}.{part}": (array.dtype, array.shape) for part, array in layer.tables.items()}
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _OTHERWISE}
        tensors |= {f"{name}{V_ABSMAX}": (found.v.dtype, found.v.shape) for name, found in self.attention.items()}
        data |= {
            "attention": {name: found.to_json() for name, found in self.attention.items()},
            "schedule": None if self.schedule is None else self.schedule.to_json(),
            "schema": SCHEMA,
            "layers": {n: _about(c) for n, c in self.layers.items()},
            "kept": {n: dataclasses.asdict(k) for n, k in self.kept.items()},
        }
        metadata = {"vditc": json.dumps(data, sort_keys=True, separators=(",", ":"))}
        with tensor_file(path, tensors, metadata) as put:
            weights = ahead(layer.weight.stored for layer in self.layers.values())
            for (name, layer), (codes, scale, zero_point, whole) in zip(self.layers.items(), weights, strict=True):
                put(f"{name}.codes", codes)
                put(f"{name}.scale", scale)
                if zero_point is not None:
                    put(f"{name}.zero_point", zero_point)
                if whole is not None:
                    put(f"{name}.tensor_scale", whole)
                for part, array in layer.tables.items():
                    put(f"{name}.{part}", array)
                advance()
            for name, found in self.attention.items():
                put(f"{name}{V_ABSMAX}", found.v)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read and check a file, but for codes and scales: those are read when they are asked for."""
        entries, metadata = read_header(path)
        try:
            data = json.loads(metadata["vditc"])
        except (KeyError, ValueError) as error:
            raise InputError(
                found="no vditc metadata", wanted="a calibration file", where=str(path), fix="write it with `vditc calibrate`"
            ) from error
        if (schema := data.pop("schema")) not in READ:
            raise InputError(found=f"schema {schema}", wanted=" or ".join(map(str, READ)), where=str(path), fix="calibrate again")
        layers = {}
        for name, info in data.pop("layers").items():
            scheme, shape = Scheme.from_json(info["scheme"]), tuple(info["shape"])
            found = {part: np.array(entry.read()) for part in TABLES if (entry := entries.get(f"{name}.{part}")) is not None}
            if f"{name}.codes" not in entries or f"{name}.scale" not in entries:
                raise InputError(found="no codes", wanted="codes and scale", where=f"{path}, layer {name}", fix="calibrate again")
            layers[name] = LayerCalibration(
                role=info["role"],
                scheme=scheme,
                weight=StoredWeight(
                    name,
                    entries[f"{name}.codes"],
                    entries[f"{name}.scale"],
                    scheme.weight,
                    shape,
                    entries.get(f"{name}.zero_point"),
                    entries.get(f"{name}.tensor_scale"),
                ),
                activation_scale=found.get("activation_scale"),
                activation_clip=found.get("activation_clip"),
                transform=Transform(
                    shift=found.get(SHIFT),
                    balance=found.get(BALANCE),
                    rotation=info.get("rotation"),
                    down=found.get(DOWN),
                    up=found.get(UP),
                    made_by=tuple(info.get("made_by", ())),
                ),
                output=_output(found.get(OUTPUT_BALANCE), info.get("output"), shape[0], f"{path}, layer {name}"),
                correction=Correction(
                    bias=found.get(BIAS),
                    alpha=found.get(ALPHA),
                    beta=found.get(BETA),
                    frames=found.get(FRAMES),
                    order=FrameOrder(info["frame_order"]) if "frame_order" in info else None,
                ),
            )
        kept = {n: Kept(role=k["role"], reason=k["reason"], shape=tuple(k["shape"])) for n, k in data.pop("kept").items()}
        attention = {
            n: AttentionCalibration.from_json(a, np.array(_needed(entries, f"{n}{V_ABSMAX}", path).read()))
            for n, a in data.pop("attention", {}).items()  # files of older versions have none
        }
        schedule = data.pop("schedule")
        return cls(
            layers=layers,
            kept=kept,
            attention=attention,
            file=path,
            schedule=None if schedule is None else Schedule.from_json(schedule),
            **data,
        )


_OTHERWISE = ("layers", "kept", "attention", "file", "schedule")  # fields that the metadata holds in a form of their own


def _needed(entries: Mapping[str, TensorEntry], name: str, path: Path) -> TensorEntry:
    if name not in entries:
        raise InputError(found=f"no tensor {name}", wanted="all tensors of the calibration", where=str(path), fix="calibrate again")
    return entries[name]


def _output(balance: Array | None, about: Any, outputs: int, where: str) -> OutputTransform | None:
    """What a file says of the transform of a layer's N `outputs`."""
    if balance is None and about is None:
        return None
    try:
        if balance is None or not isinstance(about, dict) or about.keys() != {"rotation", "start"}:
            raise ValueError(f"{'no ' if balance is None else ''}{OUTPUT_BALANCE} with {json.dumps(about)}")
        if any(type(number) is not int for number in about.values()):
            raise ValueError(json.dumps(about))
        output = OutputTransform(balance=balance, **about)
        output.check(outputs)
    except ValueError as error:
        raise InputError(
            found=f"a transform of the output that cannot be: {error}",
            wanted=f"{OUTPUT_BALANCE} [n], and a rotation that divides n, of n of {outputs} outputs",
            where=where,
            fix="calibrate again",
        ) from error
    return output


def _about(layer: LayerCalibration) -> dict[str, Any]:
    about: dict[str, Any] = {"role": layer.role, "scheme": layer.scheme.to_json(), "shape": list(layer.weight.shape)}
    order = layer.correction.order
    about |= {} if layer.transform.rotation is None else {"rotation": layer.transform.rotation}
    about |= {"made_by": list(layer.transform.made_by)} if layer.transform.made_by else {}
    about |= {} if layer.output is None else {"output": {"rotation": layer.output.rotation, "start": layer.output.start}}
    return about | ({} if order is None else {"frame_order": order.value})
