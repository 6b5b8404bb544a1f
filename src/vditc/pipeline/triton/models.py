"""A bundle's engines as models of a Triton server: their names, plans, inputs and outputs."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vditc.bundle import Bundle
from vditc.conditioner import FILE as CONDITIONER
from vditc.conditioner import Conditioner
from vditc.errors import InputError
from vditc.experts import experts_of
from vditc.graph_passes.cut_segments import cut_again
from vditc.pipeline.triton.config import Tensor
from vditc.pipeline.triton.engines import ServedEngine
from vditc.pipeline.triton.interface import NAME, STREAM
from vditc.pipeline.triton.served_pipeline import told_specs
from vditc.profile import Profile
from vditc.runtimes.backend import BUILT
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.graph_inputs import graph_outputs, input_specs
from vditc.runtimes.trt_runner import PLAN
from vditc.segments import Segments
from vditc.video_plan import FILE as DECODER

BACKEND = "tensorrt"  # of Triton, and the module whose engines it runs
STEPS = ("high", "low")  # of noise, that two experts walk


@dataclasses.dataclass(frozen=True)
class EngineModel:
    """One model of the repository. `plan`: of the bundle; `built`: what the engine was built with."""

    name: str
    plan: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    built: BuiltWith

    @property
    def served(self) -> ServedEngine:
        """What the driver must know of it."""
        return ServedEngine(self.name, {t.name: t.dtype for t in self.inputs}, tuple(t.name for t in self.outputs))


@dataclasses.dataclass(frozen=True)
class EngineModels:
    """`experts`: the segments of each, in order; `parts`: folder of a component -> graph -> model."""

    experts: tuple[tuple[EngineModel, ...], ...]
    parts: Mapping[str, Mapping[str, EngineModel]]
    prediction: str

    @property
    def every(self) -> tuple[EngineModel, ...]:
        """All models, the transformer's first."""
        return (*(m for chain in self.experts for m in chain), *(m for own in self.parts.values() for m in own.values()))

    @property
    def version(self) -> str:
        """Of TensorRT, that built all of them."""
        return self.every[0].built.version


def chosen_target(bundle: Bundle, asked: str | None) -> str:
    """The target whose engines Triton is to run; InputError for none, several of which none is named, or one without such engines."""
    targets = bundle.manifest.targets
    ours = [name for name, about in targets.items() if about["backend"] == BACKEND and about["engine"]["status"] == BUILT]
    if asked is None and len(ours) > 1:
        raise InputError(found=f"engines for {', '.join(ours)}", wanted="one of them", where="--target", fix="name it")
    name = asked if asked is not None or not ours else ours[0]
    if name in ours:
        return str(name)
    if name is not None and name in targets:
        raise _unfit(bundle, name, targets[name])
    fix = "compile for a target of TensorRT (vditc targets), build its engine where its GPU is, and bring it back with `vditc collect`"
    if name is None and len(targets) == 1:
        raise _unfit(bundle, *next(iter(targets.items())))
    found = (
        f"target {name!r}" if name is not None else f"engines of {', '.join(sorted({t['backend'] for t in targets.values()})) or 'none'}"
    )
    wanted = f"one of {', '.join(ours)}" if ours else "an engine that TensorRT built"
    raise InputError(found=found, wanted=wanted, where=f"bundle {bundle.path}", fix=fix)


def engine_models(bundle: Bundle, target: str) -> EngineModels:
    """InputError for an engine that is not there, that Triton does not run, or whose parts do not fit each other."""
    experts = experts_of(bundle)
    names = ["dit"] if len(experts) == 1 else [f"dit_{n}" for n in (STEPS if len(experts) == 2 else range(len(experts)))]
    chains = tuple(_transformer(one.bundle, bundle, target, name) for one, name in zip(experts, names, strict=True))
    prediction = graph_outputs(experts[0].bundle.file(experts[0].bundle.manifest.targets[target]["lowered"]))[0]
    found = EngineModels(chains, _parts(bundle, target), prediction)
    _check(found, bundle)
    return found


def _transformer(bundle: Bundle, outer: Bundle, target: str, name: str) -> tuple[EngineModel, ...]:
    about = bundle.manifest.targets.get(target)
    if about is None or about["backend"] != BACKEND or about["engine"]["status"] != BUILT:
        raise _unfit(bundle, target, about or {"backend": "none", "engine": {"status": "none"}})
    folder, lowered = bundle.path / "engines" / target, bundle.file(about["lowered"])
    inside = folder.relative_to(outer.path).as_posix()
    built = _built(folder, f"{bundle.path}, {target}")
    specs = tuple(Tensor(i["name"], i["dtype"], tuple(i["dims"])) for i in about["inputs"])
    segments = Segments.read(folder)
    if segments is None:
        return (EngineModel(name, f"{inside}/{PLAN}", specs, _outputs(lowered), built),)
    found = []
    with tempfile.TemporaryDirectory() as work:
        profile = Profile.from_json(bundle.manifest.profile)
        cut = cut_again(lowered, input_specs(lowered), profile, segments.blocks.values(), Path(work))
        for segment, (own, plan) in zip(cut, zip(segments.blocks, segments.plans, strict=True), strict=True):
            reads = tuple(Tensor(i.name, i.dtype, i.dims) for i in segment.inputs)
            found.append(EngineModel(f"{name}_{own}", f"{inside}/{plan}", reads, _outputs(segment.graph), built))
    return tuple(found)


def _parts(bundle: Bundle, target: str) -> dict[str, dict[str, EngineModel]]:
    """Of text encoders and the VAE decoder that the bundle has."""
    root, found = bundle.path / "components", dict[str, dict[str, EngineModel]]()
    folders = [text.encoder for text in Conditioner.load(root).text] if (root / CONDITIONER).exists() else []
    folders += ["vae"] if (root / "vae" / DECODER).exists() else []
    for folder in dict.fromkeys(folders):
        graphs = bundle.manifest.components.get(folder, {}).get("targets", {}).get(target, {}).get("graphs", {})
        if not graphs:
            raise InputError(
                found=f"no graphs of {folder} for {target}",
                wanted="an engine of each",
                where=f"bundle {bundle.path}",
                fix=f"vditc build --target {target}",
            )
        for graph, about in graphs.items():
            engine = about.get("engine", about)
            if engine.get("status") != BUILT or engine.get("backend") != BACKEND:
                raise _unfit(bundle, f"{folder}/{graph} for {target}", {"backend": engine.get("backend", "onnxruntime"), "engine": engine})
            place, name = root / folder / "engines" / target / graph, folder if graph == "model" else f"{folder}_{graph}"
            lowered = root / folder / about["lowered"]
            reads = tuple(Tensor(i.name, i.dtype, i.dims) for i in input_specs(lowered))
            plan = (place / PLAN).relative_to(bundle.path).as_posix()
            built = _built(place, f"{bundle.path}, {folder}/{graph}")
            found.setdefault(folder, {})[graph] = EngineModel(name, plan, reads, _outputs(lowered), built)
    return found


def _outputs(model: Path) -> tuple[Tensor, ...]:
    found = []
    for value in ir.load(model).graph.outputs:
        dims = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
        if value.dtype is None or dims is None or value.name is None:
            raise InputError(
                found=f"output {value.name} of type {value.dtype} and shape {value.shape}",
                wanted="a type and a shape",
                where=str(model),
                fix="compile the bundle again",
            )
        found.append(Tensor(value.name, str(value.dtype.numpy()), tuple(-1 if d is None else d for d in dims)))
    return tuple(found)


def _built(folder: Path, where: str) -> BuiltWith:
    """What an engine was built with; InputError for one that Triton cannot load."""
    built = BuiltWith.read(folder)
    if built is None:
        raise InputError(found="an engine of which nobody says what built it", wanted="engine.json", where=where, fix="build it again")
    if built.module != BACKEND:
        raise InputError(found=f"an engine of {built}", wanted="one of TensorRT", where=where, fix="build for a target of TensorRT")
    if built.weights is not None:
        raise InputError(
            found="an engine without its weights (strip-weights)",
            wanted="a whole one: Triton does not put weights back",
            where=where,
            fix="build it without the option strip-weights",
        )
    return built


def _check(found: EngineModels, bundle: Bundle) -> None:
    """Versions are one, names are different, and numpy has the types that pass through the driver."""
    names = [*(model.name for model in found.every), NAME, STREAM]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            found=f"two models named {', '.join(twice)}",
            wanted=f"one of each name, and {NAME} and {STREAM} for the driver",
            where=f"bundle {bundle.path}",
            fix="name the folders of the model's text encoders otherwise, and compile it again",
        )
    versions = sorted({model.built.version for model in found.every})
    if len(versions) > 1:
        raise InputError(
            found=f"engines of TensorRT {' and '.join(versions)}",
            wanted="one version, for a server has one",
            where=f"bundle {bundle.path}",
            fix="build the older ones again",
        )
    told = {spec.name for spec in told_specs(bundle.manifest.inputs)} | {"step", found.prediction}
    for model in found.every:
        seen = (*model.inputs, *model.outputs)
        ours = seen if model not in [m for chain in found.experts for m in chain] else [t for t in seen if t.name in told]
        if wide := [t.name for t in ours if t.dtype == "bfloat16"]:
            raise InputError(
                found=f"{', '.join(wide)} of type bfloat16, which numpy has not",
                wanted="float32 or float16",
                where=model.name,
                fix="lower the graph again: its inputs and outputs stay float32",
            )


def _unfit(bundle: Bundle, name: str, about: Mapping[str, Any]) -> InputError:
    backend, status = str(about["backend"]), str(about["engine"].get("status"))
    if backend == BACKEND:
        found, fix = (
            f"{name}: {status}",
            "build it where its GPU is (engines/<target>/build.sh, then `vditc collect`; or `vditc build` there)",
        )
    else:
        found = f"{name}: {status}, by {backend}"
        fix = "Triton's TensorRT backend loads engines of TensorRT alone: compile or `vditc build` for one of its targets (vditc targets)"
    return InputError(found=found, wanted="an engine that TensorRT built", where=f"bundle {bundle.path}", fix=fix)


def total_bytes(models: Sequence[EngineModel], bundle: Bundle) -> int:
    """Of the plans."""
    return sum(bundle.manifest.files[model.plan].bytes for model in models)
