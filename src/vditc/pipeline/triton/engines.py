"""Engines as models of the server: what denoises, encodes and decodes by calling them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from vditc.errors import InputError
from vditc.pipeline.triton.server import Utils, call_model, host_tensor
from vditc.sampling import Array, Feeds

Wanted = Callable[[str], None]  # told where, before each engine: raises when nobody waits for the answer any longer


@dataclasses.dataclass(frozen=True)
class ServedEngine:
    """One engine: the model's name, its inputs with their numpy types, its outputs, the one that people want first."""

    model: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {"model": self.model, "inputs": dict(self.inputs), "outputs": list(self.outputs)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(str(data["model"]), dict(data["inputs"]), tuple(data["outputs"]))


class EngineChain:
    """A `vditc.sampling.Denoiser` of one engine or of the segments of one.

    What passes from one segment to the next stays on the GPU, and is never looked at: numpy has no bfloat16.
    """

    def __init__(self, utils: Utils, engines: Sequence[ServedEngine], prediction: str, check_wanted: Wanted, first: int = 0) -> None:
        """`first`: of the steps of an expert, whose tables begin at 0."""
        self.utils, self.engines, self.prediction, self.first = utils, tuple(engines), prediction, first
        self.check_wanted = check_wanted

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """See the class; InputError when an engine reads what nobody gives it."""
        given: Mapping[str, Array] = {**feeds, "step": np.array([step - self.first])}
        tensors: dict[str, Any] = {}
        for number, engine in enumerate(self.engines):
            for name, dtype in engine.inputs.items():
                if name not in tensors:
                    if name not in given:
                        raise InputError(
                            found=f"no {name}",
                            wanted=", ".join(engine.inputs),
                            where=engine.model,
                            fix="give everything that the model takes",
                        )
                    tensors[name] = host_tensor(self.utils, name, given[name], dtype)
            read = [tensors[name] for name in engine.inputs]
            later = {name for one in self.engines[number + 1 :] for name in one.inputs}
            wanted = [name for name in engine.outputs if name in later or name == self.prediction]
            self.check_wanted(engine.model)
            tensors |= call_model(self.utils, engine.model, read, wanted, on_gpu=self.prediction not in wanted)
            tensors = {name: tensor for name, tensor in tensors.items() if name in later or name == self.prediction}
        return np.asarray(tensors[self.prediction].as_numpy(), np.float32)


class PartEngine:
    """A `vditc.runtimes.parts.video_decoder.PartRunner`."""

    def __init__(self, utils: Utils, engine: ServedEngine, check_wanted: Wanted) -> None:
        self.utils, self.engine, self.check_wanted = utils, engine, check_wanted

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See the class."""
        inputs = [host_tensor(self.utils, name, feeds[name], dtype) for name, dtype in self.engine.inputs.items()]
        self.check_wanted(self.engine.model)
        found = call_model(self.utils, self.engine.model, inputs, self.engine.outputs)
        return {name: np.asarray(tensor.as_numpy()) for name, tensor in found.items()}


@contextlib.contextmanager
def served(utils: Utils, engine: ServedEngine, check_wanted: Wanted) -> Iterator[PartEngine]:
    """An engine that the server has loaded: there is nothing to open."""
    yield PartEngine(utils, engine, check_wanted)
