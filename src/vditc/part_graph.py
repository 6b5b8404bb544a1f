"""What is known of an ONNX graph beside the transformer's, of a text encoder or a VAE decoder: inputs, outputs, memory between runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

from vditc.adapter import InputSpec

# height_x4: an axis four times as long as `height`; frames_x8m7: of 8 frames for every one of `frames`, but 7 fewer.
_SCALED = re.compile(r"(?P<axis>.+)_x(?P<factor>\d+)(?:m(?P<less>\d+))?")


@dataclasses.dataclass(frozen=True)
class State:
    """A tensor that one run leaves for the next: output `name.next` becomes input `name`; zeros, or absent, at the first run."""

    name: str
    dims: tuple[int | str, ...]

    @property
    def output(self) -> str:
        """The graph output that has it after the run."""
        return f"{self.name}.next"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartGraph:
    """One graph of a part. `inputs` without the states; `reads` and `writes`: states that it takes and leaves."""

    name: str
    inputs: tuple[InputSpec, ...]
    output: str
    output_dims: tuple[int | str, ...]
    reads: tuple[State, ...] = ()
    writes: tuple[State, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        specs = tuple(InputSpec(i["name"], i["dtype"], tuple(i["dims"]), i["fill"]) for i in data["inputs"])
        reads, writes = (tuple(State(s["name"], tuple(s["dims"])) for s in data[key]) for key in ("reads", "writes"))
        dims = tuple(data["output_dims"])
        return cls(name=data["name"], inputs=specs, output=data["output"], output_dims=dims, reads=reads, writes=writes)

    @property
    def all_inputs(self) -> tuple[InputSpec, ...]:
        """Inputs of the ONNX graph: the states behind the others."""
        return (*self.inputs, *(InputSpec(s.name, "float32", s.dims) for s in self.reads))

    @property
    def all_outputs(self) -> dict[str, tuple[int | str, ...]]:
        """Outputs of the ONNX graph with their dims: the states behind the one that people want."""
        return {self.output: self.output_dims, **{s.output: s.dims for s in self.writes}}

    @property
    def file(self) -> str:
        """The graph's file in the part's folder."""
        return f"{self.name}.onnx"


def scaled(axis: str, factor: int, less: int = 0) -> str:
    """The name of an axis `factor` times as long, but `less`."""
    return axis if (factor, less) == (1, 0) else f"{axis}_x{factor}{f'm{less}' if less else ''}"


def unscaled(name: str) -> tuple[str, int, int]:
    """The inverse of `scaled`."""
    found = _SCALED.fullmatch(name)
    return (found["axis"], int(found["factor"]), int(found["less"] or 0)) if found else (name, 1, 0)


def axis_size(dim: int | str, sizes: Mapping[str, int]) -> int:
    """Size of an axis, scaled or not."""
    if isinstance(dim, int):
        return dim
    axis, factor, less = unscaled(dim)
    return sizes[axis] * factor - less
