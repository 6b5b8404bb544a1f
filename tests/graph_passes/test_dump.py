"""Graphs between passes, in files that refer to the weights; and weights that nobody reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_export
from attention_graph import save_attention

from vditc.graph_passes.core import run_passes
from vditc.graph_passes.dump import DumpGraphs
from vditc.graph_passes.patterns import SMALL
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, lower
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.target import Target, builtin_targets

K = 16384


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Name -> bytes of every tensor that is read from a data file."""
    seen: dict[str, int] = {}

    def watch(method: str) -> None:
        inner = getattr(ir.ExternalTensor, method)

        def watched(self: ir.ExternalTensor, *args: object, **kw: object) -> object:
            seen[str(self.name)] = self.nbytes
            return inner(self, *args, **kw)

        monkeypatch.setattr(ir.ExternalTensor, method, watched)

    for method in ("_load", "numpy", "tobytes", "tofile", "__array__"):
        watch(method)
    yield seen


def numbered(name: str, *, keep_time_path: bool) -> str:
    """How the dump of a pass of rtx-ada begins."""
    names = [one.name for one in pipeline(Target.load("rtx-ada"), keep_time_path=keep_time_path)]
    return f"{names.index(name) + 1:02}-{name}"


def big_graph(path: Path, layers: int) -> Path:
    """Quantized layers of 256 MiB and float16 ones of 512 MiB, nothing of which is on the disk: the file is a hole."""
    body, x = [], "x"
    for i in range(layers):
        body += [
            f"a{i} = Abs({x})",
            f"m{i} = ReduceMax<keepdims=1>(a{i}, last)",
            f"r{i} = Div(m{i}, qmax)",
            f"s{i} = Max(r{i}, floor)",
            f"v{i} = Div({x}, s{i})",
            f"c{i} = QuantizeLinear<output_dtype=3>(v{i}, one)",
            f"f{i} = DequantizeLinear(c{i}, one)",
            f'["layer{i}/weight"] w{i} = DequantizeLinear<axis=1>(codes{i}, scale{i})',
            f'["layer{i}/MatMul"] p{i} = MatMul(f{i}, w{i})',
            f"y{i} = Mul(p{i}, s{i})",
            f"b{i} = Cast<to=1>(bias{i})",
            f"z{i} = Add(y{i}, b{i})",
            f"g{i} = Mul(z{i}, gain{i})",
            f"d{i} = Cast<to=1>(dense{i})",
            f"x{i} = MatMul(g{i}, d{i})",
        ]
        x = f"x{i}"
    head = '<ir_version: 10, opset_import: ["" : 21]> g (float[batch,text_tokens,16384] x) => (float[batch,text_tokens,16384] out)'
    small = "<int64[1] last = {-1}, float qmax = {127}, float floor = {0.00000001}, float one = {1}>"
    model = ir.from_onnx_text(f"{head} {small} {{ {' '.join(body)} out = Gelu({x}) }}")
    free = {v.name: v for node in model.graph for v in node.inputs if v is not None and v.producer() is None}
    path.parent.mkdir(parents=True)
    kinds = (
        ("codes", (K, K), ir.DataType.INT8),
        ("scale", (K,), ir.DataType.FLOAT),
        ("bias", (K,), ir.DataType.FLOAT16),
        ("gain", (K,), ir.DataType.FLOAT),
        ("dense", (K, K), ir.DataType.FLOAT16),
    )
    offset = 0
    for name, value in free.items():
        for kind, shape, dtype in kinds:
            if str(name).startswith(kind):
                length = int(np.prod(shape) * dtype.itemsize)
                value.const_value = ir.ExternalTensor(
                    f"{path.name}.data", offset, length, dtype, shape=ir.Shape(shape), name=str(name), base_dir=path.parent
                )
                value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
                model.graph.initializers.add(value)
                offset += length
    with path.with_name(f"{path.name}.data").open("wb") as f:
        f.truncate(offset)
    model.metadata_props["vditc"] = json.dumps({"timesteps": []})
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return path


@pytest.mark.parametrize("target", ["rtx-ada", "cpu"])
def test_no_pass_reads_a_weight_that_it_leaves_alone(tmp_path: Path, target: str, read: dict[str, int]) -> None:
    path = big_graph(tmp_path / "model" / "model.onnx", layers=4)  # 3 GiB
    model, dump = load(path), DumpGraphs(tmp_path / "dump")
    _, facts = run_passes(model, pipeline(Target.load(target)), Spec.canonical(), observers=[dump])
    assert not {name for name, size in read.items() if size > 4 * SMALL}
    assert any(f.modified for f in facts) == (target == "rtx-ada")
    assert sum(f.stat().st_size for f in tmp_path.glob("dump/*")) < 1 << 20


def test_the_count_of_reads_sees_them(tmp_path: Path, read: dict[str, int]) -> None:
    model = load(save_attention(tmp_path / "model.onnx"))
    tensor = model.graph.initializers["q_codes"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and not read
    tensor.numpy()
    assert read == {"q_codes": 64 * 64}


@pytest.mark.parametrize("target", builtin_targets())
def test_no_pipeline_reads_the_codes(tmp_path: Path, target: str, read: dict[str, int]) -> None:
    model = load(save_attention(tmp_path / "model.onnx"))
    run_passes(model, pipeline(Target.load(target)), Spec.canonical())
    assert not {"q_codes", "k_codes", "v_codes", "table"} & read.keys()


def test_graphs_refer_to_the_weights(tmp_path: Path) -> None:
    path = save_attention(tmp_path / "bundle" / "model.onnx")
    folder = tmp_path / "some" / "dump"
    out, watch = tmp_path / "out" / "x.onnx", [DumpGraphs(folder)]
    lower(model=path, target=Target.load("rtx-ada"), out=out, progress=SILENT, keep_time_path=True, observers=watch)
    names = sorted(p.name for p in folder.iterdir())
    stems = [numbered(name, keep_time_path=True) for name in ("convert-compute-type", "join-norms-to-quantization", "eliminate-dead-nodes")]
    assert names == [f"{stem}.{end}" for stem in stems for end in ("onnx", "onnxtxt")]
    text = (folder / f"{stems[0]}.onnxtxt").read_text()
    assert text.startswith("# after convert-compute-type{to=fp16}\n") and "Softmax" in text
    model = ir.load(folder / f"{stems[-1]}.onnx")
    codes = model.graph.initializers["q_codes"].const_value
    assert isinstance(codes, ir.ExternalTensor)
    assert os.fspath(codes.location) == "../../bundle/model.onnx.data" and Path(codes.path).resolve() == path.with_name("model.onnx.data")
    lowered = ir.load(tmp_path / "out" / "x.onnx").graph.initializers["q_codes"].const_value
    assert isinstance(lowered, ir.ExternalTensor) and lowered.location == "model.onnx.data"  # the dump left the graph as it was


def test_what_a_pass_made_is_written_once_and_an_older_dump_goes(tmp_path: Path, tiny: ModelDir) -> None:
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a16"]), tmp_path / "model.onnx")
    folder = tmp_path / "dump"
    folder.mkdir()
    for name in ("09-old.onnx", "09-old.onnxtxt", "09-old.onnx.data", "notes.txt", "1-of-mine.onnx"):
        (folder / name).touch()
    out, watch = tmp_path / "x.onnx", [DumpGraphs(folder)]
    lower(model=model, target=Target.load("rtx-ada"), out=out, progress=SILENT, keep_time_path=True, observers=watch)
    written = {p.name for p in folder.iterdir()}
    assert {"notes.txt", "1-of-mine.onnx"} < written and not [n for n in written if "old" in n]
    assert {n for n in written if n.endswith(".data")} == {f"{numbered('convert-compute-type', keep_time_path=True)}.onnx.data"}
    last = ir.load(folder / f"{numbered('eliminate-dead-nodes', keep_time_path=True)}.onnx")
    new = [t for v in last.graph.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor) and ".." not in str(t.location)]
    want = ir.load(tmp_path / "x.onnx").graph.initializers
    assert new and all(np.array_equal(t.numpy(), want[str(t.name)].const_value.numpy()) for t in new)  # type: ignore[union-attr]
