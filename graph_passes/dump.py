"""The graph after every pass that changed it, in files: `vditc lower --dump DIR`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx_ir as ir

from vditc.files import whole_file, write_text
from vditc.graph_passes.core import Observer, Pass, PassFacts
from vditc.graph_passes.stage import is_new, write_tensors
from vditc.graph_passes.text import to_text

_OURS = re.compile(r"\d\d-[a-z0-9-]+\.onnx(txt|\.data)?")


class DumpGraphs(Observer):
    """Writes NN-name.onnx and NN-name.onnxtxt, NN counting the passes from 1; an older dump in the folder goes first.

    Weights are not copied: the graphs refer to the files that hold them, so they are of use as long as those stay where they are.
    What a pass has made lies in NN-name.onnx.data, once for the graphs of all later passes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        # What was written before, and where; the tensor is kept so that no other gets its id.
        self._written: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}

    def start(self, model: ir.Model) -> None:
        """Make room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            if _OURS.fullmatch(old.name):
                old.unlink()

    def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
        """Write, if there is something new."""
        self._number += 1
        if not facts.modified:
            return
        path = self.folder / f"{self._number:02}-{done.name}.onnx"
        values = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor) or is_new(v)]
        if new := [v for v in values if is_new(v) and id(v.const_value) not in self._written]:
            for value, place in zip(new, write_tensors(new, path.with_name(path.name + ".data")), strict=True):
                assert value.const_value is not None
                self._written[id(value.const_value)] = value.const_value, place
        own = [v.const_value for v in values]
        try:
            for value in values:
                value.const_value = self._place(value)
            data = ir.to_proto(model).SerializeToString(deterministic=True)
        finally:
            for value, tensor in zip(values, own, strict=True):
                value.const_value = tensor
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
        write_text(path.with_suffix(".onnxtxt"), f"# after {done}\n{to_text(model)}")

    def _place(self, value: ir.Value) -> ir.ExternalTensor:
        """Where a tensor lies, as seen from the folder."""
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            return self._written[id(tensor)][1]
        location = os.path.relpath(tensor.path, self.folder)
        return ir.ExternalTensor(
            location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(value.name), base_dir=self.folder
        )
