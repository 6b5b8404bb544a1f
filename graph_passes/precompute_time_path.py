"""Replace what depends on the time alone by tables with a row for every step of the schedule.

    %e = Concat(Cos(%f), Sin(%f))      with %f of timestep          %r = Gather(%table, step)       %table [steps, N]
    %h = Silu(Add(MatMul(%e, %w1), %b1))                      ->    %m = Expand(%r, [batch, 1])
    %m = Add(MatMul(%h, %w2), %b2)
    %y = Add(%x, %m)                                                %y = Add(%x, %m)

The times are those of the graph's metadata (key `vditc`, "timesteps"); each row is computed in float32, or whatever the nodes say, by
ONNX Runtime, node by node, quantized layers of the time path included. The cut lies where the tables have the fewest bytes,
behind every matrix product of the time alone: before the constants that each block of Wan or Latte adds to one shared modulation,
behind the modulation layer that each block of CogVideoX has for itself. The input `timestep` goes, `step` (int64 [1]) comes: the index
in the schedule, the same for all clips of a batch. Weights that nothing reads any more leave the graph.

Refused: a time for every frame (given frames have time 0), and products of the time with a text, a guidance scale or another input,
which stay live behind the tables of what was before them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.errors import InputError
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.evaluate import evaluate
from vditc.graph_passes.spec import COMPUTE_TYPES
from vditc.graph_passes.time_path import (
    STEP,
    TIMESTEP,
    Cut,
    CutFinder,
    Kind,
    batch_axis,
    chosen_dims,
    counted,
    counts_clips,
    kinds,
    mixed_products,
    needed,
)

Array = npt.NDArray[Any]
CLIPS = 3  # of the trial that shows which axes are clips: 1 and 3 tell them from 2 of something else
# In the trial clips are the same but for the order in which a product sums, and in a quantized layer a code that this flips.
SAME = 0.05
_NARROW = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecomputeTimePath(Pass):
    """Tables instead of the time path; `store`: their type in the file (fp32, fp16, bf16), read back as float32."""

    name: ClassVar[str] = "precompute-time-path"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical"})

    store: str = "fp32"

    def __post_init__(self) -> None:
        if self.store not in COMPUTE_TYPES:
            wanted = f"one of {', '.join(COMPUTE_TYPES)}"
            raise InputError(found=f"store={self.store}", wanted=wanted, where=f"pass {self.name}", fix="correct the option")

    def numerics(self) -> str:
        """Rows in the type that they are stored in."""
        return "rounding" if self.store == "fp32" else self.store

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        about = json.loads(model.metadata_props.get("vditc", "{}"))
        work = _TimePath(model.graph, about.get("timesteps", []), COMPUTE_TYPES[self.store])
        figures = work.run()
        if figures:
            about["time_path"] = figures
            model.metadata_props["vditc"] = json.dumps(about, sort_keys=True, separators=(",", ":"))
        return Result(model, bool(figures), tuple(work.refusals), figures)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What a value looks like with one clip, and which of its axes are the clips."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: tuple[int, ...] | None  # None where further clips do other than repeat it along axes of their own

    @classmethod
    def of(cls, one: Array, several: Array) -> _Trial:
        """From the value with one clip and with `CLIPS` alike."""
        sizes = list(zip(one.shape, several.shape, strict=False))
        axes = None
        if one.ndim == several.ndim and all(a == b or (a, b) == (1, CLIPS) for a, b in sizes):
            repeated = np.broadcast_to(one.astype(np.float64), several.shape)
            near = SAME * float(np.abs(repeated).max(initial=0))
            if np.allclose(repeated, several.astype(np.float64), rtol=0, atol=near):
                axes = tuple(i for i, (a, b) in enumerate(sizes) if a != b)
        return cls(one.shape, one.dtype, axes)


class _TimePath:
    """One run over one graph."""

    def __init__(self, graph: ir.Graph, timesteps: Sequence[float], store: ir.DataType) -> None:
        self.graph, self.timesteps, self.store = graph, timesteps, store
        self.refusals: list[Refusal] = []
        self.kind = kinds(graph)
        self.trial: dict[ir.Value, _Trial] = {}  # of every value of the time

    def run(self) -> dict[str, int]:
        """Rewrite; the figures of what was done, empty where nothing was."""
        timestep = next((v for v in self.graph.inputs if v.name == TIMESTEP), None)
        if timestep is None:
            return {}
        if self.kind[timestep] is not Kind.TIME:
            self.refuse(f"input {TIMESTEP}", f"{timestep.shape}: a time for every frame or stream, and not one for every step")
            return {}
        some = CutFinder(self.graph, self.kind, lambda _: 0, 1).find().inside
        if not self.timesteps:
            if some:
                self.refuse(
                    f"input {TIMESTEP}", "the graph's metadata name no timesteps: export it again, with the schedule that it is for"
                )
            return {}
        times = {v for v in self.kind if self.kind[v] is Kind.TIME and v.name}
        self.evaluate(times, [(1, 0), (CLIPS, 0)], lambda value, runs: self.trial.update({value: _Trial.of(*runs)}))
        self.refusals += [Refusal(*where) for where in mixed_products(self.graph, self.kind, lambda v: len(self.trial[v].shape))]
        if not some:
            return {}
        cut = CutFinder(self.graph, self.kind, self.row_bytes, len(self.timesteps)).find()
        if not cut.inside:
            self.refuse(f"input {TIMESTEP}", "what its products give is not the same for all clips of a batch")
            return {}
        ours, weights = len(self.timesteps) * sum(self.row_bytes(v) or 0 for v in cut.values), self.leaving(cut)
        if ours >= weights:
            why = f"tables of {len(self.timesteps)} steps would take {counted(ours)}, the weights take {counted(weights)}"
            self.refuse(f"input {TIMESTEP}", why)
            return {}
        tables: dict[ir.Value, ir.Value] = {}
        steps = [(1, step) for step in range(len(self.timesteps))]
        self.evaluate(set(cut.values), steps, lambda value, rows: tables.update({value: self.table(value, rows)}))
        return self.rewrite(cut, {value: tables[value] for value in cut.values})

    def leaving(self, cut: Cut) -> int:
        """Bytes of weights that nothing but the inside reads."""
        nodes = needed(v for node in cut.inside for v in node.outputs)
        read = {v for node in nodes for v in node.inputs if v is not None and v.const_value is not None}
        return sum(v.const_value.nbytes for v in read if v.const_value is not None and all(u.node in nodes for u in v.uses()))

    def refuse(self, node: str, reason: str) -> None:
        self.refusals.append(Refusal(node, reason))

    def evaluate(self, wanted: set[ir.Value], runs: Sequence[tuple[int, int]], take: Callable[[ir.Value, list[Array]], None]) -> None:
        """`take` each value and what it is in each run, which is a number of clips and a step."""
        axis, sources = batch_axis(self.graph), dict[ir.Value, list[Array]]()
        for value in self.graph.inputs:
            if value.name == TIMESTEP and value.dtype is not None:
                dtype = value.dtype.numpy()
                sources[value] = [np.full(n if axis else 1, self.timesteps[step]).astype(dtype) for n, step in runs]
            elif value.name == STEP:
                sources[value] = [np.array([step], np.int64) for _, step in runs]
        inner = needed(wanted)
        for node in inner:
            if counts_clips(node, axis):
                dims = chosen_dims(node)
                sources[node.outputs[0]] = [np.array([d if isinstance(d, int) else n for d in dims], np.int64) for n, _ in runs]
        nodes = [node for node in self.graph if node in inner and node.outputs[0] not in sources]
        evaluate(nodes, sources, wanted, take)

    def row_bytes(self, value: ir.Value) -> int | None:
        """Of one step, for one clip; None unless further clips only repeat the row."""
        found = self.trial[value]
        if found.axes is None:
            return None
        size = 2 if found.dtype == np.float32 and self.store in _NARROW else found.dtype.itemsize
        return math.prod(found.shape) * size

    def table(self, value: ir.Value, rows: list[Array]) -> ir.Value:
        """An initialiser [steps, ...]; one leading axis of size 1 is that of the steps."""
        array = np.concatenate(rows) if rows[0].ndim and rows[0].shape[0] == 1 else np.stack(rows)
        dtype = ir.DataType.from_numpy(array.dtype)
        if dtype is ir.DataType.FLOAT and self.store in _NARROW:
            with np.errstate(over="ignore"):
                narrow = array.astype(_NARROW[self.store])
            if np.isfinite(narrow.astype(np.float32)).all() or not np.isfinite(array).all():
                array, dtype = narrow, self.store
            else:
                self.refuse(str(value.name), f"its table exceeds {self.store.name}: stored in float32")
        made = ir.val(f"{value.name}.table", const_value=ir.tensor(array, dtype=dtype, name=f"{value.name}.table"))
        self.graph.initializers.add(made)
        return made

    def rewrite(self, cut: Cut, tables: Mapping[ir.Value, ir.Value]) -> dict[str, int]:
        """Put the tables in, and take out what nothing reads any more."""
        front, sizes = self.graph[0], dict[tuple[int, tuple[int, ...]], ir.Value]()
        step = self.step_input()
        for value, table in tables.items():
            row = self.node(front, "Gather", [table, step], f"{value.name}/step", axis=0)
            if table.dtype in _NARROW:
                row = self.node(front, "Cast", [row], f"{value.name}/float", to=int(ir.DataType.FLOAT))
            one, axes = self.trial[value].shape, self.trial[value].axes
            if not one or one[0] != 1:
                row = self.node(front, "Squeeze", [row, self.integers(0)], f"{value.name}/row")
            if axes:
                key = len(one), axes
                if key not in sizes:
                    sizes[key] = self.clips(front, *key)
                row = self.node(front, "Expand", [row, sizes[key]], f"{value.name}/clips")
            self.replace(value, row, cut)
        self.drop_shapes()
        saved = self.remove(cut)
        kept = sum(t.const_value.nbytes for t in tables.values() if t.const_value is not None)
        return {"steps": len(self.timesteps), "tables": len(tables), "weights_bytes": saved, "tables_bytes": kept}

    def replace(self, value: ir.Value, row: ir.Value, cut: Cut) -> None:
        """Whoever read `value` outside reads `row`, which takes its name where it is an output of the graph."""
        for use in list(value.uses()):
            sized = use.node.op_type in ("Shape", "Size") and value.is_graph_input()
            if use.node not in cut.inside and not sized:
                use.node.replace_input_with(use.idx, row)
        if value.is_graph_output():
            for i, out in enumerate(self.graph.outputs):
                if out is value:
                    row.type, row.shape = value.type, value.shape
                    self.graph.outputs[i] = row
            name, value.name = value.name, f"{value.name}/live"
            row.name = name

    def clips(self, front: ir.Node, rank: int, axes: tuple[int, ...]) -> ir.Value:
        """The shape [1, clips, 1] for Expand."""
        count, at = self.counted_clips()
        size = self.node(front, "Shape", [count], f"time_path/clips.{rank}.{'.'.join(map(str, axes))}", start=at, end=at + 1)
        if rank == 1:
            return size
        parts = [size if i in axes else self.integers(1) for i in range(rank)]
        return self.node(front, "Concat", parts, f"time_path/shape.{rank}.{'.'.join(map(str, axes))}", axis=0)

    def counted_clips(self) -> tuple[ir.Value, int]:
        """An input with the clips in one of its axes, and which: the timestep itself only where there is no other."""
        axis = batch_axis(self.graph)
        for value in sorted(self.graph.inputs, key=lambda v: v.name == TIMESTEP):
            for i, dim in enumerate(value.shape.dims if value.shape is not None else ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value == axis:
                    return value, i
        raise AssertionError("a value that grows with the clips, without an axis of them")

    def drop_shapes(self) -> None:
        """Shapes of the timestep become shapes of another input, or they would keep it."""
        for value in list(self.graph.inputs):
            if value.name == TIMESTEP:
                for use in list(value.uses()):
                    if use.node.op_type == "Shape" and len(chosen_dims(use.node)) == 1 and batch_axis(self.graph):
                        count, at = self.counted_clips()
                        use.node.replace_input_with(0, count)
                        use.node.attributes["start"], use.node.attributes["end"] = ir.AttrInt64("start", at), ir.AttrInt64("end", at + 1)

    def remove(self, cut: Cut) -> int:
        """Dead nodes, inputs and weights; returns the weights' bytes."""
        saved, candidates = 0, needed(v for node in cut.inside for v in node.outputs)
        for node in [n for n in reversed(self.graph) if n in candidates]:
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                read = {v for v in node.inputs if v is not None}
                self.graph.remove(node, safe=True)
                for value in read:
                    if not value.uses() and not value.is_graph_output() and value.is_initializer() and value.const_value is not None:
                        saved += value.const_value.nbytes
                        del self.graph.initializers[str(value.name)]
        for value in list(self.graph.inputs):
            if value.name == TIMESTEP and not value.uses():
                self.graph.inputs.remove(value)
        return saved

    def step_input(self) -> ir.Value:
        known = {value.name: value for value in self.graph.inputs}
        if STEP not in known:
            known[STEP] = ir.Input(STEP, ir.Shape([1]), ir.TensorType(ir.DataType.INT64))
            self.graph.inputs.append(known[STEP])
        return known[STEP]

    def integers(self, value: int) -> ir.Value:
        name = f"time_path.{value}"
        if name not in self.graph.initializers:
            self.graph.initializers.add(ir.val(name, const_value=ir.tensor(np.array([value], np.int64), name=name)))
        return self.graph.initializers[name]

    def node(self, front: ir.Node, kind: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
        made = ir.node(kind, inputs, attributes, name=name)
        made.outputs[0].name = name
        self.graph.insert_before(front, made)
        return made.outputs[0]
