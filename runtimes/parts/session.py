"""A part's graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from vditc.errors import InputError, VditcError
from vditc.runtimes.onnxruntime import ERRORS, error_text, session_options

Array = npt.NDArray[Any]


LARGE = 2 << 30  # bytes of stored weights


class OrtPart:
    """Runs a graph; see `vditc.runtimes.parts.video_decoder.PartRunner`.

    Weights of more than LARGE bytes stay as they are stored, and each becomes float32 when its node runs; smaller ones do while loading.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """InputError when the file cannot be loaded."""
        self.path, options = path, session_options(threads)
        if sum(p.stat().st_size for p in path.parent.glob("*.data")) > LARGE:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except ERRORS as error:
            raise InputError(
                found=error_text(error), wanted="a graph that ONNX Runtime can load", where=str(path), fix="compile the bundle again"
            ) from error
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """VditcError when it does not run, for lack of memory most of all."""
        try:
            found = self.session.run(self.outputs, {n: np.ascontiguousarray(a) for n, a in feeds.items()})
        except ERRORS as error:
            raise VditcError(
                found=error_text(error), wanted=", ".join(self.outputs), where=str(self.path), fix="use a smaller clip, or --vae-tiles"
            ) from error
        return dict(zip(self.outputs, found, strict=True))


@contextmanager
def open_ort_part(path: Path) -> Iterator[OrtPart]:
    """Loads a graph and forgets it afterwards."""
    yield OrtPart(path)
