"""How much each layer's quantization costs the model: one layer quantized at a time, on the full-precision model's trajectory.

Teacher forcing: every forward pass starts from what the full-precision model made of the steps before, so errors do not add up over steps
and belong to the one layer. Blocks that ran before the layer give what they gave in full precision and are not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import psutil
import torch

from vditc.adapter import ModelAdapter
from vditc.calibration import Calibration
from vditc.errors import VditcError
from vditc.files import array_digest, data_digest
from vditc.model_dir import ModelDir
from vditc.progress import Progress
from vditc.runtimes.reference import QuantizedLinear, ReferenceModel, check_same_model, linear_of
from vditc.sampled_model import SampledModel
from vditc.sampling import Denoiser, Feeds
from vditc.torch_device import torch_device

Array = npt.NDArray[Any]
Metric = Callable[[Array, Array], float]  # (full-precision, quantized) prediction [B, C, F, H, W] -> error
Errors = dict[str, dict[str, list[float]]]  # candidate -> unit -> mean error in each group of steps
_SHARE = 0.25  # of the free memory may hold blocks' outputs


def relative_squared_error(full: Array, quantized: Array) -> float:
    """|full - quantized|^2 / |full|^2."""
    norm = float(np.square(full, dtype=np.float64).sum())
    return float(np.square(full - quantized, dtype=np.float64).sum()) / norm if norm else 0.0


def trajectory_feeds(
    denoise: Denoiser, sampled: SampledModel, groups: Sequence[range], progress: Progress
) -> list[list[tuple[Feeds, int]]]:
    """What the full-precision model reads at the middle step of every group, of every clip; by group."""
    found: list[list[tuple[Feeds, int]]] = [[] for _ in groups]
    middle = {group[len(group) // 2]: number for number, group in enumerate(groups)}
    with progress.task("sample trajectories", len(sampled.conditioning) * sampled.steps) as advance:
        for index in range(len(sampled.conditioning)):

            def recorded(feeds: Feeds, step: int) -> Array:
                if step in middle:
                    found[middle[step]].append((feeds, step))
                advance()
                return denoise(feeds, step)

            sampled.sample(recorded, index)
    return found


def sensitivity(
    *,
    source: ModelDir,
    adapter: ModelAdapter,
    candidates: Mapping[str, Calibration],
    feeds: Sequence[Sequence[tuple[Feeds, int]]],
    progress: Progress,
    units: Mapping[str, Sequence[str]] | None = None,
    metric: Metric = relative_squared_error,
    device: str = "cpu",
    work: Path | None = None,
    model: ReferenceModel | None = None,
) -> Errors:
    """The prediction's error when one unit alone is quantized as a candidate says, for every candidate.

    `feeds`: of each group of steps, inputs and the index of their step (`trajectory_feeds`). `units`: name -> layers that are quantized
    together, by default every layer of the first candidate by itself; a candidate that lacks a layer of a unit is not tried on it.
    `metric` of each feed, averaged over the group's. `work`: a file that results are added to as they come, so that a killed run goes
    on; it is for one metric. `model`: the full-precision model, if it is loaded already.

    InputError when a candidate is of another model; VditcError for an error that is not finite.
    """
    for calibration in candidates.values():
        check_same_model(source, calibration)
    units = units or {layer: (layer,) for layer in next(iter(candidates.values())).layers}
    tried = [(name, unit) for name, c in candidates.items() for unit, layers in units.items() if all(n in c.layers for n in layers)]
    key = {
        "model": source.digest,
        "candidates": {name: c.digest or c.recipe_digest for name, c in candidates.items()},
        "units": {unit: list(layers) for unit, layers in units.items()},
        "feeds": [[[step, *(array_digest(given[n]) for n in sorted(given))] for given, step in group] for group in feeds],
        "device": torch_device(device).type,
    }
    notes = _Notes(work, data_digest(key), progress)
    sums = {pair: [0.0] * len(feeds) for pair in tried}
    done = sum(notes.get(n, i, pair) is not None for n, group in enumerate(feeds) for i in range(len(group)) for pair in tried)
    with progress.task("quantize one layer at a time", len(tried) * sum(map(len, feeds)), done) as advance, notes:
        for number, group in enumerate(feeds):
            for place, (given, step) in enumerate(group):
                missing = [pair for pair in tried if notes.get(number, place, pair) is None]
                if missing:
                    model = model or ReferenceModel(adapter, source, None, device)
                    with _Blocks(model, adapter, source) as blocks:
                        full = blocks.record(given, step)
                        for name, unit in sorted(missing, key=lambda pair: blocks.place(units[pair[1]])):
                            with _quantized(model, candidates[name], units[unit], step, given), blocks.skipped(units[unit]):
                                value = metric(full, model(given, step))
                            if not np.isfinite(value):
                                raise VditcError(
                                    found=f"an error of {value}",
                                    wanted="a finite one",
                                    where=f"{unit} by {name}, step {step}",
                                    fix="check the metric, and that the model samples well in full precision",
                                )
                            notes.put(number, place, (name, unit), value)
                            advance()
                for pair in tried:
                    sums[pair][number] += notes.value(number, place, pair)
    means = {pair: [total / len(group) for total, group in zip(sums[pair], feeds, strict=True)] for pair in tried}
    return {name: {unit: mean for (own, unit), mean in means.items() if own == name} for name in candidates}


@contextmanager
def _quantized(model: ReferenceModel, calibration: Calibration, layers: Sequence[str], step: int, feeds: Feeds) -> Iterator[None]:
    """The model with some of its linears quantized."""
    exact = {name: linear_of(model.model, name) for name in layers}
    try:
        for name, module in exact.items():
            quantized = QuantizedLinear(calibration.layers[name], module.bias, alone=True).to(model.device)
            quantized.step, quantized.clips = step, len(next(iter(feeds.values())))
            model.model.set_submodule(name, quantized)
        yield
    finally:
        for name, module in exact.items():
            model.model.set_submodule(name, module)


class _Blocks:
    """The outputs of all blocks in one forward pass, to be given instead of running them, where memory allows; use it as a context."""

    def __init__(self, model: ReferenceModel, adapter: ModelAdapter, source: ModelDir) -> None:
        lists = [name for loop in adapter.loops(source.config) for name in loop.modules]
        self.model, self.order, self.outputs, self.hooks = model, dict[str, int](), list[Any](), ExitStack()
        self.blocks = {f"{n}.{i}": block for n in lists for i, block in enumerate(model.model.get_submodule(n))}
        self.free = _SHARE * psutil.virtual_memory().available

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.close()
        self.outputs.clear()

    def record(self, feeds: Feeds, step: int) -> Array:
        """Run the full-precision model."""
        with ExitStack() as hooks:
            for name, block in self.blocks.items():

                def keep(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
                    if name in self.order:  # it runs twice: which of its outputs to give is not known
                        self.free = -1.0
                    self.order.setdefault(name, len(self.order))
                    self.free -= sum(t.nbytes for t in _tensors(output))
                    self.outputs.append(_copied(output) if self.free > 0 else None)

                hooks.callback(block.register_forward_hook(keep).remove)
            return self.model(feeds, step)

    def place(self, layers: Sequence[str]) -> int:
        """How many blocks ran before the first of these layers; 0 where one is in no block."""
        return min(next((at for block, at in self.order.items() if layer.startswith(f"{block}.")), 0) for layer in layers)

    @contextmanager
    def skipped(self, layers: Sequence[str]) -> Iterator[None]:
        """Blocks before these layers give what they gave; all run where memory was too small for that."""
        count = self.place(layers) if self.free > 0 else 0
        chosen = [(self.blocks[name], at) for name, at in self.order.items() if at < count]
        for block, at in chosen:
            block.forward = lambda *_, at=at, **__: _copied(self.outputs[at])
        try:
            yield
        finally:
            for block, _ in chosen:
                del block.forward  # the class's own


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, tuple | list) else []


def _copied(value: Any) -> Any:
    """Tensors are copied: what comes behind a block may write into its output."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return type(value)(_copied(part) for part in value) if isinstance(value, tuple | list) else value


class _Notes:
    """Values as lines of JSON behind the digest of the run, added as they come; a line that was cut short is left out."""

    def __init__(self, path: Path | None, run: str, progress: Progress) -> None:
        self.path, self.run, self.known = path, run, dict[tuple[int, int, str, str], float]()
        self.file: TextIO | None = None
        if path is None or not path.exists():
            return
        whole = [line for line in path.read_text().split("\n")[:-1] if line]
        if not whole or whole[0] != run:
            progress.note(f"{path} is of another model, recipe, device or set of clips: the analysis starts anew")
            return
        for line in whole[1:]:
            number, place, name, unit, value = json.loads(line)
            self.known[number, place, name, unit] = value
        progress.note(f"{path} holds {len(self.known)} results: the analysis goes on from there")

    def __enter__(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("w")
            for line in (self.run, *(json.dumps([*key, value]) for key, value in self.known.items())):
                self.file.write(line + "\n")
            self.file.flush()

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()

    def get(self, number: int, place: int, pair: tuple[str, str]) -> float | None:
        return self.known.get((number, place, *pair))

    def value(self, number: int, place: int, pair: tuple[str, str]) -> float:
        return self.known[number, place, pair[0], pair[1]]

    def put(self, number: int, place: int, pair: tuple[str, str], value: float) -> None:
        self.known[number, place, pair[0], pair[1]] = float(value)
        if self.file is not None:
            self.file.write(json.dumps([number, place, *pair, float(value)]) + "\n")
            self.file.flush()
