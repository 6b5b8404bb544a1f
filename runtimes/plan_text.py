"""Reads the program that a TensorRT-RTX plan carries as plain text, so that fusion can be checked without a GPU.

A plan holds sections: the magic "NLYM", four bytes of version, the length as eight bytes, then text with the blocks `header`,
`descriptors` (tensors) and `main` (operations, in order). The first section is the engine; the following ones are the bodies of
its `runtime_fusion` operations. The format is not documented: what is here was found on plans of KNOWN_VERSION.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from vditc.errors import VditcError
from vditc.runtimes.engine_program import EngineProgram, Gemm, Kernel

KNOWN_VERSION = "1.7.1.116"  # of the package tensorrt_rtx_cu13

_SECTION = re.compile(rb"NLYM.{4}(.{8})header \{\n", re.DOTALL)
_TOKEN = re.compile(r'"([^"]*)"|([{}=])|([^\s{}="]+)')
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_GEMM = "fully_connected"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor. `dims`: numbers, or names of sizes known at run time. `base`: the tensor that this one is a view of."""

    name: str
    type: str
    dims: tuple[str, ...]
    const_bytes: int | None
    base: str | None

    def __str__(self) -> str:
        return f"{self.type}[{' '.join(self.dims)}]"


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation. `backbone`: what a runtime fusion is built around ("gemm"). `nodes`: the ONNX nodes it computes."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    backbone: str | None
    kernel: str | None
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A program: the engine's own, or the body of a runtime fusion (`accelerators` is then ("*",))."""

    accelerators: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]

    @property
    def is_body(self) -> bool:
        """Whether this is the inside of a fused operation."""
        return self.accelerators == ("*",)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All sections of a plan file, the engine's own first."""

    path: Path
    sections: tuple[Section, ...]


def _unknown(path: Path, found: str) -> VditcError:
    return VditcError(
        found=found,
        wanted=f"a plan as TensorRT-RTX {KNOWN_VERSION} writes it",
        where=str(path),
        fix=f"install tensorrt_rtx_cu13=={KNOWN_VERSION} and build again",
    )


def read_plan(path: Path) -> Plan:
    """Read the sections of a plan; VditcError if the file is not a plan of a known format."""
    if not path.is_file() or path.stat().st_size == 0:
        raise _unknown(path, "no plan" if not path.exists() else "an empty file")
    sections = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _SECTION.finditer(data):
            begin, length = match.end(1), int.from_bytes(match[1], "little")
            if begin + length > len(data):
                raise _unknown(path, f"a section of {length} bytes at byte {begin} of {len(data)}")
            sections.append(_section(path, data[begin : begin + length].decode("latin-1")))
    if not sections or sections[0].is_body or not sections[0].ops:
        raise _unknown(path, f"{len(sections)} sections of program text" if sections else "no program text")
    return Plan(path, tuple(sections))


def _section(path: Path, text: str) -> Section:
    block = ""
    accelerators: tuple[str, ...] = ()
    tensors: dict[str, Tensor] = {}
    ops: list[Op] = []
    for line in text.splitlines():
        if line.endswith(" {") and not line.startswith(" "):
            block = line[:-2]
            continue
        kind, brace, rest = line.strip().partition("={")
        if not brace:
            continue
        if block == "header" and kind == "accelerators":
            accelerators = tuple(rest.rstrip("} ").split())
        elif block == "descriptors" and kind in ("tensor", "sub_tensor"):
            tensor = _tensor(path, _fields(rest))
            tensors[tensor.name] = tensor
        elif block == "main":
            fields = _fields(rest)
            ops.append(
                Op(
                    kind=kind,
                    name=_word(fields, "name") or "",
                    inputs=fields.get("input") or fields.get("input_args") or (),
                    outputs=fields.get("output") or fields.get("output_args") or (),
                    backbone=_word(fields, "backbone"),
                    kernel=_word(fields, "kernel"),
                    nodes=tuple(_NODE.findall(_word(fields, "layers") or "")),
                )
            )
    return Section(accelerators, tensors, tuple(ops))


def _tensor(path: Path, fields: Mapping[str, tuple[str, ...]]) -> Tensor:
    name, kind, size = _word(fields, "name"), _word(fields, "type"), _word(fields, "const_payload_size")
    if name is None or kind is None or "dims" not in fields:
        raise _unknown(path, f"a tensor with the fields {', '.join(fields)}")
    return Tensor(name, kind, fields["dims"], int(size) if size else None, _word(fields, "base"))


def _word(fields: Mapping[str, tuple[str, ...]], key: str) -> str | None:
    return fields[key][0] if fields.get(key) else None


def _fields(text: str) -> dict[str, tuple[str, ...]]:
    """`key=word key="text" key={ item "item" }` -> key -> items, those of nested braces among them."""
    fields: dict[str, tuple[str, ...]] = {}
    tokens = [(m[1] if m[1] is not None else m[2] or m[3], m[2] is not None) for m in _TOKEN.finditer(text)]
    i = 0
    while i + 2 < len(tokens):
        key, (sign, is_sign) = tokens[i][0], tokens[i + 1]
        if tokens[i][1] or not is_sign or sign != "=":
            i += 1
            continue
        i += 2
        if tokens[i] != ("{", True):
            fields[key] = (tokens[i][0],)
            i += 1
            continue
        depth, items = 1, []
        i += 1
        while i < len(tokens) and depth:
            token, is_sign = tokens[i]
            depth += (is_sign and token == "{") - (is_sign and token == "}")
            if not is_sign:
                items.append(token)
            i += 1
        fields[key] = tuple(items)
    return fields


def program(plan: Plan) -> EngineProgram:
    """What the plan computes."""
    main = plan.sections[0]
    constants: Counter[str] = Counter()
    for tensor in main.tensors.values():
        constants[tensor.type] += tensor.const_bytes or 0

    def kernels(ops: Iterator[Op]) -> tuple[Kernel, ...]:
        return tuple(Kernel(op.name, op.nodes, tuple(str(main.tensors[o]) for o in op.outputs if o in main.tensors)) for op in ops)

    is_attention = {op: op.name.startswith("_gemm_mha") for op in main.ops}
    return EngineProgram(
        source=str(plan.path),
        gemms=tuple(_gemm(plan.path, section, op) for section in plan.sections for op in section.ops if op.kind == _GEMM),
        attentions=kernels(op for op in main.ops if is_attention[op]),
        plugins=kernels(op for op in main.ops if op.kind == "custom_layer"),
        kernels=kernels(op for op in main.ops if not is_attention[op] and op.kind not in ("custom_layer", _GEMM)),
        constant_bytes={kind: size for kind, size in sorted(constants.items()) if size},
        repeated_sizes=tuple(sorted({str(t) for t in main.tensors.values() if _repeats(t)})),
    )


def _repeats(tensor: Tensor) -> bool:
    sizes = [d for d in tensor.dims if not d.isdigit()]
    return len(set(sizes)) < len(sizes)


def _gemm(path: Path, section: Section, op: Op) -> Gemm:
    try:
        a, b, output = (section.tensors[name] for name in (*op.inputs[:2], op.outputs[0]))
    except (KeyError, IndexError, ValueError):
        raise _unknown(path, f"product {op.name!r} of {list(op.inputs)}, which the section does not describe") from None
    source = _source(section, b)
    return Gemm(
        nodes=op.nodes,
        activation=a.type,
        weight=b.type,
        output=output.type,
        stored=source.type if source else None,
        dequant_fused=section.is_body or source is b,
    )


def _source(section: Section, tensor: Tensor) -> Tensor | None:
    """The largest constant that `tensor` is made from without another product between."""
    made_by = {output: op for op in section.ops for output in op.outputs}
    leaves, todo, seen = [], [tensor.name], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in section.tensors:
            continue
        seen.add(name)
        if base := section.tensors[name].base:
            todo.append(base)
        elif (op := made_by.get(name)) is None:
            leaves.append(section.tensors[name])
        elif op.kind != _GEMM and op.backbone is None and not op.name.startswith("_gemm_mha"):
            todo.extend(op.inputs)
    # The constants of a fusion's body lie in the engine's own section: there, any input of fixed size is one.
    constants = [t for t in leaves if all(d.isdigit() for d in t.dims)] if section.is_body else [t for t in leaves if t.const_bytes]
    return max(constants, key=_count, default=None)


def _count(tensor: Tensor) -> int:
    count = 1
    for size in tensor.dims:
        count *= int(size) if size.isdigit() else 1
    return count
