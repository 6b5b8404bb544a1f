"""How tensors lie in the data file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from vditc.errors import InputError, VditcError
from vditc.export.weights import StreamedTensor, add_initializer, attach_weights, transpose
from vditc.export.write import external_tensors, write_model
from vditc.float_weight import ArrayTensor, own_bytes
from vditc.lora import FusedTensor
from vditc.model_dir import ModelDir
from vditc.safetensors_file import read_header, write_tensors


def test_tensors_are_aligned_and_small_ones_stay_inline(tmp_path: Path) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    arrays = {f"t{size}": np.full(size, size % 251, np.uint8) for size in (1023, 1025, 1024)}
    for name, array in arrays.items():
        add_initializer(graph, ir.tensor(array, name=name))
    calls: list[None] = []
    sizes = write_model(ir.Model(graph, ir_version=10), tmp_path / "m.onnx", lambda: calls.append(None))
    assert len(calls) == 2
    assert sizes[1] == 1088 + 1024  # 1025 rounded up to 64, then 1024
    read = ir.load(tmp_path / "m.onnx")
    assert not isinstance(read.graph.initializers["t1023"].const_value, ir.ExternalTensor)
    for name, array in arrays.items():
        tensor = read.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)


def graph_of(tensors: list[ir.TensorProtocol], order: list[int]) -> ir.Graph:
    """Identity nodes that read the tensors in that order."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    values = [add_initializer(graph, t) for t in tensors]
    for i in order:
        graph.append(ir.node("Identity", [values[i]], name=f"n{i}"))
    return graph


def test_the_file_is_in_the_order_of_the_nodes() -> None:
    tensors: list[ir.TensorProtocol] = [ir.tensor(np.zeros(2048, np.uint8), name=f"t{i}") for i in range(3)]
    assert [v.name for v in external_tensors(graph_of(tensors, [2, 0, 1, 0]))] == ["t2", "t0", "t1"]


def test_what_is_made_together_is_made_once(tmp_path: Path) -> None:
    calls: list[None] = []
    codes, scale = np.arange(4096, dtype=np.int8).reshape(64, 64), np.linspace(1, 2, 512, dtype=np.float32)

    def arrays() -> tuple[Any, Any]:
        calls.append(None)
        return codes, scale

    tensors: list[ir.TensorProtocol] = [
        StreamedTensor("codes", ir.DataType.INT8, (64, 64), arrays, 0),
        StreamedTensor("scale", ir.DataType.FLOAT, (512,), arrays, 1),
    ]
    write_model(ir.Model(graph_of(tensors, [0, 1]), ir_version=10), tmp_path / "m.onnx", lambda: None)
    assert len(calls) == 1
    read = ir.load(tmp_path / "m.onnx").graph.initializers
    for name, array in (("codes", codes), ("scale", scale)):
        tensor = read[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)


def attached(tmp_path: Path, weights: dict[str, Any]) -> tuple[ir.Model, dict[str, Any]]:
    """A graph that reads parameters of a checkpoint, untransposed, and the checkpoint's entries."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    for name in weights:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        graph.initializers[name] = value
        graph.append(ir.node("Identity", [value], name=f"{name}/n"))
    source = ModelDir(tmp_path, {}, weights, None, lambda: "")
    attach_weights(graph, source, (), {})
    return ir.Model(graph, ir_version=10), weights


def test_bytes_of_the_checkpoint_are_copied_and_fused_weights_are_not(tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.standard_normal((40, 30), np.float32).astype(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "w", {"a": array, "b": array * 2})
    entries = read_header(tmp_path / "w")[0]

    class Fused(FusedTensor):
        def read(self) -> Any:
            return np.asarray(self.base.read()) * np.asarray(4, ml_dtypes.bfloat16)

    fused = Fused.of(entries["b"], ())
    assert own_bytes(entries["a"]) is entries["a"] and own_bytes(fused) is None
    model, _ = attached(tmp_path, {"a": entries["a"], "b": fused})
    write_model(model, tmp_path / "m.onnx", lambda: None)
    read = ir.load(tmp_path / "m.onnx").graph.initializers
    for name, wanted in (("a", array), ("b", array * 8)):
        tensor = read[name].const_value
        assert tensor is not None
        assert tensor.tobytes() == wanted.tobytes()


def test_a_checkpoint_that_shrinks_leaves_no_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", {"a": np.ones((64, 64), np.float32)})
    model, entries = attached(tmp_path, read_header(tmp_path / "w")[0])
    with (tmp_path / "w").open("r+b") as f:
        f.truncate(entries["a"].offset + 1000)
    with pytest.raises(InputError, match=r"w: found the file ends 15384 bytes early"):
        write_model(model, tmp_path / "out" / "m.onnx", lambda: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full(file: int, data: Any, offset: int) -> int:
        if offset >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    tensors: list[ir.TensorProtocol] = [ir.tensor(np.zeros(3000, np.uint8), name=f"t{i}") for i in range(3)]
    with pytest.raises(VditcError, match=r"m\.onnx\.data: found a full disk .* wanted 9,016 bytes free"):
        write_model(ir.Model(graph_of(tensors, [0, 1, 2]), ir_version=10), tmp_path / "m.onnx", lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_another_size_is_an_error(tmp_path: Path) -> None:
    wrong = StreamedTensor("t", ir.DataType.INT8, (64, 64), lambda: [np.zeros((64, 63), np.int8)])
    with pytest.raises(ValueError, match="tensor t: 4032 bytes where 4096 were announced"):
        write_model(ir.Model(graph_of([wrong], [0]), ir_version=10), tmp_path / "m.onnx", lambda: None)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3000, 700), (2, 300_000)])
def test_transposing_in_blocks(tmp_path: Path, rng: np.random.Generator, dtype: Any, shape: tuple[int, int]) -> None:
    array = rng.standard_normal(shape, np.float32).astype(dtype)
    write_tensors(tmp_path / "w", {"w": array})
    for tensor in (ArrayTensor(array), read_header(tmp_path / "w")[0]["w"]):
        found = transpose(tensor)
        assert found.dtype == dtype and found.flags.c_contiguous and found.tobytes() == array.T.tobytes()
