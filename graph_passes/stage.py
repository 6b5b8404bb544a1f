"""The graph_passes stage: canonical `model.onnx` -> `lowered/<target>.onnx`, verified before and after every pass."""

from __future__ import annotations

import dataclasses
import filecmp
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from vditc.attention import AttentionScheme
from vditc.errors import InputError
from vditc.files import copy_range, room_for, whole_file
from vditc.graph_passes.core import Observer, Pass, PassFacts, run_passes
from vditc.graph_passes.pipelines import parse_pass, pipeline
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.target_spec import lowered_for
from vditc.graph_passes.tensor_bytes import tensor_bytes
from vditc.progress import Progress
from vditc.target import Target

INLINE_BYTES = 256  # constants up to this size stay in the .onnx file, where they can be read


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowerFacts:
    """What lowering did and wrote."""

    target: str
    dialect: str
    passes: tuple[PassFacts, ...]
    nodes_before: int
    nodes_after: int
    files: tuple[Path, ...]  # the graph first, then the data files it points to, all in one folder


def lower(
    *,
    model: Path,
    target: Target,
    out: Path,
    progress: Progress,
    passes: Sequence[str] | None = None,
    keep_time_path: bool = False,
    plugins: bool = False,
    attention: QuantizeAttention | None = None,
    first: Sequence[Pass] = (),
    observers: Sequence[Observer] = (),
) -> LowerFacts:
    """Write `out`, the graph for `target`, and beside it what it points to.

    Weights that no pass changed are not read: the canonical data file is copied beside `out` under its own name, once for
    all targets, unless less than half of it is used. New tensors go to `<out>.data`. `passes` replaces the target's pipeline,
    `keep_time_path` leaves the timestep an input, `plugins` hands layers of few bits to the plugin library, `attention` attention as well.
    `first` are passes in front of all others.
    InputError for a file that is no ONNX model, lacks data, was not written by `vditc export` or is not of the dialect, and for
    passes in an order that cannot be; DialectError when what a pass made is not of the dialect, or the result holds what the
    target does not take. Whole or not at all; the same input gives the same bytes.
    """
    for option, given in (("--keep-time-path", keep_time_path), ("--plugins", plugins)):
        if passes is not None and given:
            raise InputError(found=f"--passes with {option}", wanted="one of them", where="lower", fix="name the passes that you want")
    wanted = lowered_for(target)
    todo = *first, *chosen_passes(target, passes, keep_time_path=keep_time_path, plugins=plugins, attention=attention)
    graph = load(model)
    check_origin(graph, model)
    before = len(graph.graph)
    _, facts = run_passes(graph, todo, Spec.canonical(), progress=progress, observers=observers, title=f"lower for {target.name}")
    wanted.verify(graph, where="after the last pass")
    files = save(graph, out)
    return LowerFacts(target=target.name, dialect=wanted.name, passes=facts, nodes_before=before, nodes_after=len(graph.graph), files=files)


def chosen_passes(
    target: Target,
    passes: Sequence[str] | None,
    *,
    keep_time_path: bool = False,
    plugins: bool = False,
    attention: QuantizeAttention | None = None,
) -> tuple[Pass, ...]:
    """The target's pipeline, or the passes that are named instead; InputError for one that cannot be read."""
    if passes is not None:
        return tuple(parse_pass(p) for p in passes)
    return pipeline(target, keep_time_path=keep_time_path, plugins=plugins, attention=attention)


def asked_attention(model: Path) -> QuantizeAttention | None:
    """What the recipe of an exported graph asks of its attention, at the graph's default sizes. InputError as `lower`."""
    asked = check_origin(load(model), model).get("attention")
    return QuantizeAttention.asked(None if asked is None else AttentionScheme.from_json(asked), {})


def load(path: Path) -> ir.Model:
    """Read a graph, its weights left on disk; InputError unless every external tensor lies within a file of the same folder."""
    try:
        model = ir.load(path)
    except (OSError, DecodeError) as error:
        raise InputError(found=str(error) or "no ONNX model", wanted="an ONNX model", where=str(path), fix="export it again") from error
    for tensor in _external(model):
        data = path.parent / tensor.location
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if Path(tensor.location).name != str(tensor.location):
            raise InputError(
                found=f"tensor {tensor.name} in {tensor.location}",
                wanted="a file in the model's own folder",
                where=str(path),
                fix="export it again",
            )
        if not data.is_file() or data.stat().st_size < end:
            raise InputError(
                found=f"{data.stat().st_size} bytes" if data.is_file() else "no such file",
                wanted=f"at least {end} bytes for tensor {tensor.name}",
                where=str(data),
                fix="copy the model together with its data, or export it again",
            )
    return model


def check_origin(model: ir.Model, path: Path) -> dict[str, Any]:
    """The graph's metadata. InputError for one that `vditc export` has not written: without it nobody knows the sizes and steps."""
    try:
        about = json.loads(model.metadata_props.get("vditc", "null"))
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise InputError(
            found="a graph from elsewhere, without vditc's metadata" if "vditc" not in model.metadata_props else "unreadable metadata",
            wanted="a graph that `vditc export` wrote",
            where=str(path),
            fix="export the model with `vditc export`",
        )
    return about


def save(model: ir.Model, out: Path) -> tuple[Path, ...]:
    """Write `out` and its data; an older `out` goes first, so that no graph ever points into data of another."""
    out.parent.mkdir(parents=True, exist_ok=True)
    own = out.with_name(out.name + ".data")
    little = _little_used(model)
    kept = sorted({Path(str(t.path)) for t in _external(model)} - little)
    new = [v for v in model.graph.initializers.values() if is_new(v) or _path(v.const_value) in little]
    if clash := [p for p in sorted({*kept, *little}) if p.name in (own.name, out.name)]:
        raise InputError(found=f"data file {clash[0]}", wanted="another name", where=str(out), fix="choose another output name")
    out.unlink(missing_ok=True)
    for path in kept:
        _copy(path, out.parent / path.name)
    if new:
        for value, place in zip(new, write_tensors(new, own), strict=True):
            value.const_value = place
    else:
        own.unlink(missing_ok=True)
    with whole_file(out) as temporary:
        temporary.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return (out, *(out.parent / p.name for p in kept), *([own] if new else []))


def is_new(value: ir.Value) -> bool:
    """Whether an initialiser was made by a pass and is too large to stay in the .onnx file."""
    tensor = value.const_value
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > INLINE_BYTES


def write_tensors(values: Sequence[ir.Value], path: Path) -> list[ir.ExternalTensor]:
    """Write the tensors of initialisers one behind another; returns where each lies."""
    places: list[ir.ExternalTensor] = []
    with whole_file(path) as temporary, temporary.open("wb") as f:
        for value in values:
            tensor = value.const_value
            assert tensor is not None
            begin = f.tell()
            f.write(tensor_bytes(tensor).data if isinstance(tensor, ir.ExternalTensor) else tensor.tobytes())
            size, shape = f.tell() - begin, ir.Shape(tensor.shape.numpy())
            places.append(ir.ExternalTensor(path.name, begin, size, tensor.dtype, shape=shape, name=str(value.name), base_dir=path.parent))
    return places


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    """Initialisers that lie in a data file."""
    return [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]


def _little_used(model: ir.Model) -> set[Path]:
    """Data files of which the graph reads less than half: that is written with what is new, instead of a copy of all."""
    used = Counter[Path]()
    for tensor in _external(model):
        used[Path(str(tensor.path))] += tensor.nbytes
    return {path for path, size in used.items() if 2 * size < path.stat().st_size}


def _path(tensor: ir.TensorProtocol | None) -> Path | None:
    """The data file that a tensor lies in."""
    return Path(str(tensor.path)) if isinstance(tensor, ir.ExternalTensor) else None


def _copy(source: Path, to: Path) -> None:
    """Make `to` equal to `source`; another target may have done so already. Readers of ONNX refuse linked data files.

    The two are compared byte by byte, unless this process has made the one of the other and neither has changed. File systems that
    share blocks between files do so.
    """
    if to.exists() and (source.samefile(to) or _COPIES.get(to.resolve()) == _state(source, to) or filecmp.cmp(source, to, shallow=False)):
        return
    with whole_file(to) as temporary, room_for(to, source.stat().st_size), source.open("rb") as read, temporary.open("wb") as written:
        copy_range(read.fileno(), 0, written.fileno(), 0, source.stat().st_size)
    _COPIES[to.resolve()] = _state(source, to)


_State = tuple[tuple[Path, int, int, int], ...]
_COPIES: dict[Path, _State] = {}  # of this process: what a copy and its source were like when it was made


def _state(*paths: Path) -> _State:
    return tuple((p.resolve(), s.st_ino, s.st_size, s.st_mtime_ns) for p in paths if (s := p.stat()))
