"""Layers that read one tensor, quantized one group after the other; what takes long is kept in files, so that a killed run goes on.

A group's file is a calibration file of its layers alone. Rounding to nearest costs less than to write it, and is done when the
calibration is written.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vditc.calibrate.methods.base import InputStatistics, Method
from vditc.calibration import Calibration, LayerCalibration
from vditc.errors import InputError, VditcError
from vditc.float_weight import FloatWeight
from vditc.model_dir import ModelDir
from vditc.qweight import RoundedWeight
from vditc.scheme import Scheme
from vditc.transform import OutputTransform, with_outputs

FOLDER = "groups"  # in the working folder
KEEP = 0.5  # seconds that a group must have taken to be kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """How to quantize the layers of a model."""

    source: ModelDir
    method: Method
    schemes: Mapping[str, Scheme]  # of every layer to be quantized
    roles: Mapping[str, str]
    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)  # layer behind attention -> channels of a head that v rotates

    def quantize(
        self, group: tuple[str, ...], statistics: InputStatistics | None, outputs: Mapping[str, OutputTransform] = MappingProxyType({})
    ) -> dict[str, LayerCalibration]:
        """Layers that read one tensor; `outputs`: what some of them are to give out. VditcError when the method leaves one out."""
        given = {layer: outputs.get(layer) for layer in group}
        weights = {layer: with_outputs(layer_weight(self.source, layer), given[layer]) for layer in group}
        own = {layer: self.schemes[layer] for layer in group}
        if not any(self.method.needs_statistics(scheme) for scheme in own.values()):
            statistics = None
        done = self.method.quantize(weights, statistics, own, self.heads.get(group[0]))
        if done.keys() != own.keys():
            raise VditcError(
                found=f"no codes of {', '.join(own.keys() - done.keys())}" if own.keys() - done.keys() else f"codes of {', '.join(done)}",
                wanted="every layer that the recipe quantizes, and no other",
                where=f"method {self.method.name}",
                fix="report the recipe and the model's config.json",
            )
        done = {layer: done[layer]._replace(output=given[layer]) for layer in group}
        return {layer: LayerCalibration(role=self.roles[layer], scheme=own[layer], **done[layer]._asdict()) for layer in group}

    def kept(
        self,
        group: tuple[str, ...],
        statistics: InputStatistics | None,
        work: Path,
        run: str,
        outputs: Mapping[str, OutputTransform] = MappingProxyType({}),
    ) -> tuple[dict[str, LayerCalibration], bool]:
        """The same from, or into, a file in `work`; and whether it was there. `run`: digest of everything that the result depends on."""
        path = work / FOLDER / f"{group[0]}.safetensors"
        if (found := _read(path, group, run)) is not None:
            return found, True
        began = time.monotonic()
        layers = self.quantize(group, statistics, outputs)
        if time.monotonic() - began < KEEP and all(isinstance(layer.weight, RoundedWeight) for layer in layers.values()):
            return layers, False
        part = Calibration(
            model_class=self.source.model_class,
            model_digest=self.source.digest,
            recipe="",
            recipe_digest=run,
            method=self.method.name,
            schedule=None,
            guidance_scale=None,
            layers=layers,
            kept={},
            statistics={},
        )
        part.save(path)
        return dict(Calibration.load(path).layers), False


def forget_groups(work: Path) -> None:
    """Remove the files: the calibration is written."""
    shutil.rmtree(work / FOLDER, ignore_errors=True)


def layer_weight(source: ModelDir, layer: str) -> FloatWeight:
    """A layer's weight in the checkpoint."""
    entry = source.weights[f"{layer}.weight"]
    return FloatWeight(entry, f"{entry.path}, layer {layer}")


def _read(path: Path, group: tuple[str, ...], run: str) -> dict[str, LayerCalibration] | None:
    """None when there is no whole file of this run."""
    if not path.exists():
        return None
    try:
        part = Calibration.load(path)
        layers = dict(part.layers)
    except (InputError, KeyError, ValueError, TypeError):
        return None
    return layers if part.recipe_digest == run and sorted(layers) == sorted(group) else None
