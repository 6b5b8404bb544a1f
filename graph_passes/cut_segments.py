"""Cut a lowered graph into segments of whole blocks, for a builder that has no memory for all of it.

    before: inputs -> head, blocks.0 ... blocks.39, tail -> velocity
    after:  segment_00: inputs                       -> head, blocks.0 ... blocks.12  -> hidden, rope, time
            segment_01: hidden, rope, time           -> blocks.13 ... blocks.26       -> hidden
            segment_02: hidden, rope, time           -> blocks.27 ... blocks.39, tail -> velocity

A node is of the block that its name begins with ("blocks.7.attn1.to_q/MatMul"), or of the last block that it depends on. Blocks
run in the order of their depth in the graph, so that lists of blocks which alternate, or of which one follows the other, need no rule.
What passes from one segment to another are tensors of 16 bits or more: whoever reads codes of fewer bits, numbers computed of constants,
or sizes computed of shapes, computes them again. The segments are graphs beside the lowered one, and refer to the same file of weights.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from vditc.adapter import InputSpec
from vditc.errors import VditcError
from vditc.files import whole_file
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.sized_shapes import sized_shapes
from vditc.profile import Profile, Range
from vditc.segments import block_of_name

_PRODUCTS = ("MatMul", "Gemm", "QLinear")
_WIDE = 16  # bits of an element
_PASS_ON = ("Cast", "Identity", "Reshape", "Transpose")  # may stand between dequantized codes and a product
_WHOLE = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}


@dataclasses.dataclass(frozen=True)
class Segment:
    """A graph of its own. `profile` has the axes of its inputs; `outputs` are the tensors that it hands out."""

    name: str
    graph: Path
    blocks: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    profile: Profile


@dataclasses.dataclass(frozen=True)
class Load:
    """What a builder's memory depends on: linear layers, and bytes of constants."""

    products: int = 0
    weights: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(self.products + other.products, self.weights + other.weights)


def cut_segments(
    lowered: Path,
    inputs: Iterable[InputSpec],
    profile: Profile,
    count: int | None,
    *,
    memory: Callable[[Load], int],
    budget: int | None,
) -> tuple[Segment, ...]:
    """Write `lowered`.segment_NN.onnx beside it; `inputs` are those of the lowered graph.

    `count` segments of weights as equal as blocks allow; None: as few as keep `memory` (bytes that building them takes) within `budget`, as
    far as whole blocks can. VditcError for more segments than blocks, and for a tensor between them of unknown type or size.
    """
    work = _Cutter(lowered, tuple(inputs), profile)
    loads = work.loads()
    if count is not None and count > len(loads):
        raise VditcError(
            found=f"segments={count}",
            wanted=f"at most {len(loads)}, as the model has blocks" if loads else "a model of blocks",
            where=str(lowered),
            fix="cut into fewer",
        )
    remove_segments(lowered)
    if count is None:
        assert budget is not None
        sizes = next((s for n in range(1, len(loads)) if max(map(memory, _sums(loads, s := partition(loads, n)))) <= budget), None)
        sizes = sizes or [1] * len(loads)
    else:
        sizes = partition(loads, count)
    return work.write(sizes)


def cut_again(
    lowered: Path, inputs: Iterable[InputSpec], profile: Profile, blocks: Iterable[tuple[str, ...]], out: Path
) -> tuple[Segment, ...]:
    """The segments of an earlier cut, whose blocks are these, written into the folder `out`; their weights are not there.

    VditcError for a graph whose blocks are others.
    """
    work, wanted = _Cutter(lowered, tuple(inputs), profile), list(blocks)
    if [block for own in wanted for block in own] != work.blocks:
        raise VditcError(
            found=f"segments of {', '.join(block for own in wanted for block in own)}",
            wanted=f"the blocks of the graph: {', '.join(work.blocks)}",
            where=str(lowered),
            fix="build the engine again",
        )
    return work.write([len(own) for own in wanted], out)


def remove_segments(lowered: Path) -> None:
    """The segments that an earlier cut has left beside `lowered`."""
    for old in lowered.parent.glob(f"{lowered.stem}.segment_*.onnx"):
        old.unlink()


def partition(loads: list[Load], count: int) -> list[int]:
    """Lengths of `count` runs of neighbours whose greatest weight is least; of several ways the one with the heaviest runs last."""
    best: dict[tuple[int, int], tuple[int, int]] = {}  # (first that is left, runs left) -> greatest weight, length of the next run
    tail = [0]
    for load in reversed(loads):
        tail.append(tail[-1] + load.weights)
    total = tail[::-1]  # of all from an index on
    for begin in range(len(loads), -1, -1):
        best[begin, 0] = (0 if begin == len(loads) else 1 << 62, 0)
        for left in range(1, count + 1):
            ways = [
                (max(total[begin] - total[end], best[end, left - 1][0]), end - begin)
                for end in range(begin + 1, len(loads) + 1)
                if (end, left - 1) in best
            ]
            best[begin, left] = min(ways, default=(1 << 62, 0))
    lengths, begin = list[int](), 0
    for left in range(count, 0, -1):
        lengths.append(best[begin, left][1])
        begin += lengths[-1]
    return lengths


def _sums(loads: list[Load], lengths: list[int]) -> list[Load]:
    found, begin = list[Load](), 0
    for length in lengths:
        found.append(sum(loads[begin : begin + length], Load()))
        begin += length
    return found


class _Cutter:
    """One lowered graph."""

    def __init__(self, lowered: Path, inputs: tuple[InputSpec, ...], profile: Profile) -> None:
        self.lowered, self.inputs, self.profile = lowered, {spec.name: spec for spec in inputs}, profile
        self.model = onnx.load(lowered, load_external_data=False)
        self.graph = ir.load(lowered).graph
        self.types = {str(v.name): kind for v, kind in element_types(self.graph).of.items()}
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self.made_by = {name: i for i, node in enumerate(self.model.graph.node) for name in node.output if name}
        self.fixed: list[bool] = []  # whether a node computes with constants alone
        self.again: list[bool] = []  # whether a segment that reads a node's outputs computes them itself
        for node in self.model.graph.node:
            read = [name for name in node.input if name and name not in self.constants]
            self.fixed.append(all(name in self.made_by and self.fixed[self.made_by[name]] for name in read))
            self.again.append(self.fixed[-1] or self._repeated(node))
        self.blocks, self.stage = self._stages()

    def _repeated(self, node: onnx.NodeProto) -> bool:
        """Codes, what they are dequantized to (a product of another segment is to read codes), and numbers that are computed of shapes."""
        kinds = {self.types.get(name) for name in node.output if name} - {None}
        if any(kind != ir.DataType.BOOL and kind.bitwidth < _WIDE for kind in kinds if kind is not None):
            return True
        read = [name for name in node.input if name and name not in self.constants]
        shapes = bool(read) and all(n in self.made_by and self.again[self.made_by[n]] for n in read)
        if node.op_type == "DequantizeLinear" or node.op_type in _PASS_ON:
            before = self.made_by.get(node.input[0])
            if before is not None and self.again[before] and (node.op_type == "DequantizeLinear" or self._dequantizes(before)):
                return True
        return node.op_type == "Shape" or (shapes and kinds <= _WHOLE)

    def _dequantizes(self, number: int) -> bool:
        """Whether a node gives dequantized codes."""
        node = self.model.graph.node[number]
        passed = node.op_type in _PASS_ON and (before := self.made_by.get(node.input[0])) is not None and self._dequantizes(before)
        return node.op_type == "DequantizeLinear" or passed

    def _stages(self) -> tuple[list[str], list[int]]:
        """Blocks in the order in which they run, and for every node the number of its block; the head is of the first."""
        nodes, depth, deepest = self.model.graph.node, list[int](), dict[str, int]()
        own = [block_of_name(node.name) for node in nodes]
        for node, block, fixed in zip(nodes, own, self.fixed, strict=True):
            depth.append(1 + max((depth[self.made_by[n]] for n in node.input if n in self.made_by), default=0))
            if block is not None and not fixed:  # "rotation.1536.left" is a constant that many blocks read
                deepest[block] = max(depth[-1], deepest.get(block, 0))
        blocks = sorted(deepest, key=lambda block: deepest[block])
        number, stage = {block: i for i, block in enumerate(blocks)}, list[int]()
        for node, block in zip(nodes, own, strict=True):
            before = max((stage[self.made_by[n]] for n in node.input if n in self.made_by), default=0)
            stage.append(max(before, number.get(block, 0) if block is not None else 0))
        return blocks, stage

    def loads(self) -> list[Load]:
        """Of each block; a constant that several read counts for each."""
        products, constants = defaultdict[int, int](int), defaultdict[int, set[str]](set)
        for node, stage in zip(self.model.graph.node, self.stage, strict=True):
            products[stage] += node.op_type in _PRODUCTS
            constants[stage].update(name for name in node.input if name in self.constants)
        sizes = {str(value.name): value.const_value.nbytes for value in self.graph.initializers.values() if value.const_value is not None}
        return [Load(products[i], sum(sizes[name] for name in constants[i])) for i in range(len(self.blocks))]

    def write(self, lengths: list[int], out: Path | None = None) -> tuple[Segment, ...]:
        """Segments of so many blocks each, beside the graph or in the folder `out`."""
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        home = [next(k for k, end in enumerate(ends) if stage < end) for stage in self.stage]
        results, made = [value.name for value in self.model.graph.output], self.model.graph.node
        held, crossing, handed = dict[int, set[int]](), dict[int, list[str]](), dict[int, list[str]]()
        for k in reversed(range(len(lengths))):
            later = {name for names in crossing.values() for name in names}
            own = [n for i, node in enumerate(made) if home[i] == k for n in node.output]
            handed[k] = [n for n in results if n in own] + [n for n in own if n in later and n not in results]
            held[k], crossing[k] = self._needed(handed[k], k, home)
        dims, axes = self._sizes({name for names in crossing.values() for name in names if name not in self.inputs})
        segments = []
        for k, length in enumerate(lengths):
            specs = [self.inputs.get(n) or InputSpec(n, str(self.types[n].numpy()), dims[n]) for n in crossing[k]]
            named = {d for spec in specs for d in spec.dims if isinstance(d, str)}
            segments.append(
                Segment(
                    name=f"segment_{k:02}",
                    graph=(out or self.lowered.parent) / f"{self.lowered.stem}.segment_{k:02}.onnx",
                    blocks=tuple(self.blocks[ends[k] - length : ends[k]]),
                    inputs=tuple(specs),
                    outputs=tuple(handed[k]),
                    profile=Profile({axis: r for axis, r in {**self.profile.axes, **axes}.items() if axis in named}),
                )
            )
            self._save(segments[-1], sorted(held[k]), dims)
        return tuple(segments)

    def _needed(self, outputs: list[str], k: int, home: list[int]) -> tuple[set[int], list[str]]:
        """Nodes that a segment runs, its own and repeated ones, and the tensors that it reads from outside: the model's inputs first."""
        nodes, outside, left = set[int](), set[str](), list(outputs)
        while left:
            name = left.pop()
            if not name or name in self.constants:
                continue
            maker = self.made_by.get(name)
            if maker is None or (home[maker] != k and not self.again[maker]):
                outside.add(name)
            elif maker not in nodes:
                nodes.add(maker)
                left += self.model.graph.node[maker].input
        return nodes, sorted(outside, key=lambda name: (name not in self.inputs, self.made_by.get(name, 0), name))

    def _sizes(self, names: set[str]) -> tuple[dict[str, tuple[int | str, ...]], dict[str, Range]]:
        """Dims of tensors between segments, and the ranges of the axes that the profile has no name for.

        Sizes that are the same wherever the profile is looked at are one axis: at its three sizes, and with one axis at a time at its end.
        """
        ends = [{axis: getattr(r, end) for axis, r in self.profile.axes.items()} for end in ("min", "opt", "max")]
        ends += [ends[0] | {axis: r.max} for axis, r in self.profile.axes.items() if r.max > r.min]
        by_value = [{str(v.name): shape for v, shape in sized_shapes(self.graph, end).items() if v.name in names} for end in ends]
        known = {tuple(end[axis] for end in ends): axis for axis, r in self.profile.axes.items() if r.max > r.min}
        dims, axes = dict[str, tuple[int | str, ...]](), dict[str, Range]()
        for name in sorted(names):
            if name not in self.types or not all(name in shapes for shapes in by_value):
                raise VditcError(
                    found=f"a tensor of unknown {'size' if name in self.types else 'type'} between two blocks: {name}",
                    wanted="blocks that hand on tensors of known type and size",
                    where=str(self.lowered),
                    fix="build without segments, and report this model",
                )
            found = list[int | str]()
            for sizes in zip(*(shapes[name] for shapes in by_value), strict=True):
                if len(set(sizes)) > 1 and sizes not in known:
                    known[sizes] = f"size{len(axes)}"
                    axes[known[sizes]] = Range(*sizes[:3])
                found.append(known[sizes] if len(set(sizes)) > 1 else sizes[0])
            dims[name] = tuple(found)
        return dims, axes

    def _save(self, segment: Segment, nodes: list[int], dims: Mapping[str, tuple[int | str, ...]]) -> None:
        """Without weights; the dialect's metadata stay."""
        told = {value.name: value for value in (*self.model.graph.input, *self.model.graph.output)}
        kept = [self.model.graph.node[i] for i in nodes]

        def value(name: str) -> onnx.ValueInfoProto:
            return told.get(name) or onnx.helper.make_tensor_value_info(name, int(self.types[name]), dims[name])

        read = {name for node in kept for name in node.input}
        graph = onnx.helper.make_graph(
            kept,
            segment.name,
            [value(spec.name) for spec in segment.inputs],
            [value(name) for name in segment.outputs],
            [tensor for name, tensor in self.constants.items() if name in read],
        )
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.CopyFrom(graph)
        with whole_file(segment.graph) as temporary:
            temporary.write_bytes(model.SerializeToString())
