"""What every family must pass. Each check takes a prepared case; `PreparedCase` traces it once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from family_case import Case, save
from tolerances import relative_l2

from vditc.adapter import ROLES, ModelAdapter
from vditc.calibrate.attention_outputs import attention_outputs, parts_of
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.shared_inputs import SharedInputs
from vditc.calibration import Calibration, Kept, LayerCalibration
from vditc.correction import Correction, FrameOrder
from vditc.errors import VditcError
from vditc.export.adapters.registry import adapter_for
from vditc.export.describe import describe_inputs
from vditc.export.stage import insert_weights, traced_graph
from vditc.export.write import write_model
from vditc.graph_passes.core import run_passes
from vditc.graph_passes.cut_segments import cut_segments
from vditc.graph_passes.precompute_time_path import PrecomputeTimePath
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, lower
from vditc.graph_passes.stage import save as save_graph
from vditc.graph_passes.time_path import PRODUCTS, Kind, kinds
from vditc.hadamard import block_of
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes.graph_inputs import graph_outputs, input_specs
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.onnxruntime import session_options
from vditc.runtimes.reference import QuantizedLinear
from vditc.runtimes.registry import backend
from vditc.scheme import QuantSpec, Scheme, quantize_weight
from vditc.segments import block_of_name
from vditc.target import Target
from vditc.transform import OutputTransform, Transform

Arrays = dict[str, npt.NDArray[Any]]
W8A8 = Scheme(
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
)
W8A8_STEPS = Scheme(
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True),
)
STEPS = 3
W4A16 = Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=16))
# Activations that meet a tie of the rounding flip by one code when the summation order differs: one step of 1/127 of a token's
# greatest value in a few elements, spread over the output.
FLIPS = 5e-3


@dataclasses.dataclass(frozen=True)
class PreparedCase:
    """A case on disk."""

    case: Case
    source: ModelDir
    folder: Path

    @classmethod
    def make(cls, case: Case, folder: Path) -> PreparedCase:
        return cls(case, save(case, folder / "model"), folder)

    @property
    def adapter(self) -> ModelAdapter:
        return adapter_for(self.source)

    def feeds(self, shape: Mapping[str, int], seed: int = 0) -> Arrays:
        """Random inputs."""
        random = np.random.default_rng(seed)
        return {s.name: s.example(shape, random) for s in self.adapter.inputs(self.source)}

    @functools.cached_property
    def model(self) -> Any:
        """The module in float32 with its weights."""
        return self.adapter.load(self.source)

    def wanted(self, shape: Mapping[str, int], model: Any = None) -> list[npt.NDArray[Any]]:
        """What the module as it is, nothing patched, predicts: every output."""
        feeds = {n: torch.from_numpy(a) for n, a in self.feeds(shape).items()}
        with torch.no_grad():
            return [value.numpy() for value in self.adapter.forward_all(self.model if model is None else model, feeds)]

    @functools.cached_property
    def groups(self) -> dict[str, str]:
        """Layer -> the first layer of its block that reads the very same tensor."""
        groups: dict[str, str] = {}
        shared = SharedInputs()

        def hook(name: str) -> Any:
            def note(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                known = shared.reads_as(name, inputs[0])
                groups[name] = name if known is None else groups[known]

            return note

        handles = [self.model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in self.adapter.layer_roles(self.source)]
        self.wanted(self.case.shapes[0])
        for handle in handles:
            handle.remove()
        return groups

    def export(self, scheme: Scheme | None, *, whole: bool = False, transformed: bool = False, rotated: bool = False) -> Path:
        """Write the graph with that scheme in all blocks; `transformed`: every input with a shift and a balance; `rotated`: as there."""
        kind = "fp32" if scheme is None else f"{scheme.weight.qtype.value}{'-steps' if scheme is W8A8_STEPS else ''}"
        kind += "-transformed" if transformed else "-rotated" if rotated else ""
        out = self.folder / f"{'whole' if whole else 'stamped'}-{kind}.onnx"
        if not out.exists():
            graph = traced_graph(self.source, self.adapter, whole=whole)
            chosen = self.transformed if transformed else self.calibration
            insert_weights(graph, self.source, self.rotated(scheme) if rotated and scheme is not None else chosen(scheme))
            describe_inputs(graph, self.adapter.inputs(self.source), self.adapter.sizes(self.source))
            write_model(graph, out, lambda: None)
        return out

    def calibration(self, scheme: Scheme | None) -> Calibration:
        """Round-to-nearest of every linear of attention and feed-forward whose width the group divides."""
        layers: dict[str, LayerCalibration] = {}
        kept: dict[str, Kept] = {}
        for name, role in self.adapter.layer_roles(self.source).items():
            entry = self.source.weights[f"{name}.weight"]
            inner = role.split(".")[0].endswith(("attn", "ffn")) and len(entry.shape) == 2
            if scheme is None or not inner or entry.shape[1] % 16:
                kept[name] = Kept(role=role, reason="test", shape=entry.shape)
                continue
            weight = quantize_weight(entry.read(), scheme.weight, scale_dtype=np.float32 if scheme.activation else np.float16)
            static = scheme.activation is not None and scheme.activation.per_step
            table = np.linspace(0.04, 0.06, STEPS, dtype=np.float32) if static else None
            layers[name] = LayerCalibration(role=role, scheme=scheme, weight=weight, activation_scale=table)
        return Calibration(
            model_class=self.source.model_class,
            model_digest=self.source.digest,
            recipe="test",
            recipe_digest="0",
            method="rtn",
            schedule=None,
            guidance_scale=1.0,
            layers=layers,
            kept=kept,
            statistics={},
        )

    def transformed(self, scheme: Scheme | None) -> Calibration:
        """The same with a shift and a balance of random signs for every group of layers."""
        plain = self.calibration(scheme)
        layers: dict[str, LayerCalibration] = {}
        for name, layer in plain.layers.items():
            random = np.random.default_rng(zlib.crc32(self.groups[name].encode()))
            balance = np.exp(0.3 * random.standard_normal(layer.weight.shape[1])) * random.choice([-1, 1], layer.weight.shape[1])
            shift = 0.1 * random.standard_normal(layer.weight.shape[1])
            transform = Transform(balance=balance.astype(np.float32), shift=shift.astype(np.float32))
            whole = np.asarray(self.source.weights[f"{name}.weight"].read(), np.float32)
            weight = quantize_weight(transform.weight(whole), layer.scheme.weight, scale_dtype=layer.weight.scale_dtype)
            correction = Correction(bias=(whole @ shift).astype(np.float32))
            layers[name] = dataclasses.replace(layer, transform=transform, weight=weight, correction=correction)
        return dataclasses.replace(plain, layers=layers)

    def rotated(self, scheme: Scheme) -> Calibration:
        """The same with a balance and a rotation for every group of layers; behind attention both are v's where they may be."""
        plain, roles = self.calibration(scheme), self.adapter.layer_roles(self.source)
        pairs, _ = attention_outputs(
            lambda: FullPrecision(self.adapter, self.source, torch.device("cpu")),
            self.feeds(self.case.shapes[0]),
            {n: c.scheme for n, c in plain.layers.items()},
            roles,
        )
        behind = {out: pair for pair in pairs for out in pair.outs}
        transforms: dict[str, Transform] = {}
        outputs: dict[str, OutputTransform] = {}
        for name, layer in plain.layers.items():
            k, pair = layer.weight.shape[1], behind.get(name)
            of = self.groups[name] if pair is None else pair.outs[0]
            random = np.random.default_rng(zlib.crc32(of.encode()))
            balance = (np.exp(0.3 * random.standard_normal(k)) * random.choice([-1, 1], k)).astype(np.float32)
            transforms[name] = Transform(
                balance=balance, rotation=block_of(k if pair is None else pair.head), made_by=() if pair is None else pair.values
            )
            outputs |= {} if pair is None else pair.transforms(parts_of(roles), transforms[name])
        layers: dict[str, LayerCalibration] = {}
        for name, layer in plain.layers.items():
            whole, output = np.asarray(self.source.weights[f"{name}.weight"].read(), np.float32), outputs.get(name)
            changed = transforms[name].weight(whole if output is None else output.weight(whole))
            weight = quantize_weight(changed, layer.scheme.weight, scale_dtype=layer.weight.scale_dtype)
            layers[name] = dataclasses.replace(layer, transform=transforms[name], output=output, weight=weight)
        return dataclasses.replace(plain, layers=layers)


def quantized(p: PreparedCase, calibration: Calibration) -> Any:
    """The module with its linears replaced."""
    model = p.adapter.load(p.source)
    for name, layer in calibration.layers.items():
        model.set_submodule(name, QuantizedLinear(layer, model.get_submodule(name).bias))
    return model


def run(model: Path, feeds: Arrays) -> list[npt.NDArray[Any]]:
    """Every output of the graph in ONNX Runtime at ORT_ENABLE_BASIC, Q/DQ as they stand."""
    session = ort.InferenceSession(str(model), session_options(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def distance(found: list[npt.NDArray[Any]], wanted: list[npt.NDArray[Any]]) -> float:
    """Relative L2 of the output that is furthest away."""
    assert [f.shape for f in found] == [w.shape for w in wanted]
    return max(relative_l2(f, w) for f, w in zip(found, wanted, strict=True))


def attributes(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """What every module of the model holds."""
    return {name: {key: id(value) for key, value in vars(module).items()} for name, module in model.named_modules()}


def check_roles(p: PreparedCase) -> None:
    """Every layer has a role of the common vocabulary, and the time path and blocks are told."""
    roles = p.adapter.layer_roles(p.source)
    assert set(roles.values()) <= ROLES, sorted(set(roles.values()) - ROLES)
    assert {r.split(".")[0] for r in roles.values()} & {"time_embed"}
    for loop in p.adapter.loops(p.source.config):
        for module, period in loop.modules.items():
            assert len(p.model.get_submodule(module)) == loop.count * period, module


def check_patches(p: PreparedCase) -> None:
    """What `patched` rewrites leaves the outputs, and is gone afterwards."""
    for shape in p.case.shapes:
        before = p.wanted(shape)
        own = attributes(p.model)  # now, for some models keep tables when they first run
        with p.adapter.patched(p.model):
            assert (attributes(p.model) != own) == (type(p.adapter).patched is not ModelAdapter.patched)
            patched = p.wanted(shape)
        assert attributes(p.model) == own
        assert all(map(np.array_equal, before, p.wanted(shape)))
        assert distance(patched, before) <= p.case.patch_tolerance


def check_frame_orders(p: PreparedCase) -> None:
    """Noise in one latent frame of one clip changes just the rows that `frame_order` calls that frame's, with and without patches.

    That holds for the first layer of each order, in front of which no frame has seen another; behind it these rows change most, but
    for what attention answers, which has the order of its queries.
    """
    shape = next((s for s in p.case.shapes if p.feeds(s)["hidden_states"].shape[2] > 1), None)
    orders = {n: order for n in p.adapter.layer_roles(p.source) if (order := p.adapter.frame_order(p.source, n))}
    if shape is None or not orders:
        pytest.skip("a model of images, or one whose rows are not frames alone")
    feeds = p.feeds(shape)
    clips, latents = feeds["hidden_states"].shape[0], feeds["hidden_states"].shape[2]
    frames = p.adapter.frames_of(p.source, latents)

    def rows(given: Arrays) -> dict[str, torch.Tensor]:
        """Inputs of the layers, in the order in which they run: [clips, frames, tokens of a frame, K]."""
        seen: dict[str, torch.Tensor] = {}

        def hook(name: str, order: FrameOrder) -> Any:
            def keep(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                assert name not in seen, f"{name} runs twice"
                x = inputs[0].reshape(*order.shape(clips, frames), inputs[0].shape[-1])
                seen[name] = x if order is FrameOrder.FRAMES_FIRST else x.transpose(1, 2)

            return keep

        hooks = [p.model.get_submodule(n).register_forward_pre_hook(hook(n, order)) for n, order in orders.items()]
        with torch.no_grad():
            p.adapter.forward_all(p.model, {n: torch.from_numpy(a) for n, a in given.items()})
        for handle in hooks:
            handle.remove()
        return seen

    moving = {s.name: s.dims.index("frames") for s in p.adapter.inputs(p.source) if len(s.dims) >= 5 and "frames" in s.dims}
    moving |= {"hidden_states": 2}
    for patched in (False, True):
        with p.adapter.patched(p.model) if patched else contextlib.nullcontext():
            before, counts = rows(feeds), dict.fromkeys(orders, 0)
            for latent in range(latents):
                noisy = {n: a.copy() for n, a in feeds.items()}
                for name, axis in moving.items():
                    part = np.moveaxis(noisy[name], axis, 0)[latent, -1]
                    part += np.random.default_rng(latent).standard_normal(part.shape).astype(part.dtype)
                after, first = rows(noisy), set(FrameOrder)
                assert list(after) == list(before) and set(after) == set(orders)
                for name, x in after.items():
                    change = (x - before[name]).abs().amax(-1)  # [clips, frames, tokens]
                    where = name, "patched" if patched else "as it is", latent
                    own = torch.zeros_like(change, dtype=torch.bool)
                    own[-1, latent * frames // latents] = True
                    if orders[name] in first and change.any():
                        first.remove(orders[name])
                        assert torch.equal(change > 0, own), where
                    counts[name] += bool(own.any(-1).flatten()[change.mean(-1).argmax()])
                assert not first & set(orders.values())
            answers = {n for n, role in p.adapter.layer_roles(p.source).items() if role.endswith("attn.out")}
            assert all(counts[name] == latents for name in orders if name not in answers), counts


def check_streamed(p: PreparedCase) -> None:
    """A module that may hold no matrix of a block computes the same, and holds none afterwards."""
    model = p.adapter.load(p.source, memory=0)
    held = sum(t.numel() for t in model.parameters())
    blocks = [name for loop in p.adapter.loops(p.source.config) for name in loop.modules]
    matrices = [n for n, t in p.model.named_parameters() if n.startswith(tuple(f"{b}." for b in blocks)) and t.ndim >= 2]
    assert matrices and held == sum(t.numel() for t in p.model.parameters()) - sum(p.model.get_parameter(n).numel() for n in matrices)
    shape = p.case.shapes[0]
    assert all(map(np.array_equal, p.wanted(shape, model), p.wanted(shape)))
    assert held == sum(t.numel() for t in model.parameters())


def check_float(p: PreparedCase) -> None:
    """The unquantized graph equals the module at every shape, in its axes and its numbers."""
    graph = p.export(None)
    for shape in p.case.shapes:
        wanted = p.wanted(shape)
        assert len(wanted) == len(p.adapter.outputs)
        assert all(np.isfinite(w).all() and np.abs(w).max() > 1e-3 for w in wanted)
        assert wanted[0].shape[2:] == tuple(shape.get(a, 1) for a in ("frames", "height", "width"))
        assert distance(run(graph, p.feeds(shape)), wanted) <= p.case.tolerance


def check_quantized(p: PreparedCase, scheme: Scheme) -> None:
    """The quantized graph equals the quantized module, and is not the unquantized one."""
    calibration = p.calibration(scheme)
    assert calibration.layers, "nothing to quantize"
    graph = p.export(scheme)
    model = quantized(p, calibration)
    for shape in p.case.shapes:
        found = run(graph, p.feeds(shape))
        wanted = p.wanted(shape, model)
        assert distance(found, wanted) <= (FLIPS if scheme.activation else max(p.case.tolerance, 1e-5))
    assert distance(p.wanted(shape), wanted) > 1e-4


def check_time_path(p: PreparedCase) -> None:
    """What depends on the time alone becomes tables: the same outputs at the first and the last step; the rest is named."""
    times, graph = (1000.0, 803.25, 500.5), load(path := p.export(None))
    about = json.loads(graph.metadata_props["vditc"]) | {"timesteps": times}
    graph.metadata_props["vditc"] = json.dumps(about)
    _, (facts,) = run_passes(graph, [PrecomputeTimePath()], Spec.canonical())
    said = [r.reason for r in facts.refusals]
    if next(s.dims for s in p.adapter.inputs(p.source) if s.name == "timestep") != ("batch",):
        assert not facts.modified and len(said) == 1 and "a time for every frame or stream" in said[0]
        return
    assert len(said) == len(p.case.live) and all(any(re.match(f"the time meets {w}: ", s) for s in said) for w in p.case.live), said
    names = [str(v.name) for v in graph.graph.inputs]
    assert "timestep" not in names and "step" in names
    kind = kinds(graph.graph)
    assert not [n.name for n in graph.graph if n.op_type in PRODUCTS and kind[n.outputs[0]] is Kind.TIME]
    assert facts.figures["tables_bytes"] < facts.figures["weights_bytes"]
    out = p.folder / "time" / "tables.onnx"
    save_graph(graph, out)
    for shape, step in zip(p.case.shapes, (0, 2, 1), strict=True):
        feeds = p.feeds(shape, step)
        feeds["timestep"] = np.full_like(feeds["timestep"], times[step])
        found = run(out, {n: np.array([step]) if n == "step" else feeds[n] for n in names})
        assert distance(found, run(path, feeds)) <= p.case.tolerance


def check_segments(p: PreparedCase) -> None:
    """As many segments as blocks compute what the lowered graph does, bit for bit in float32, and products keep their codes."""
    lowered = p.folder / "segments" / "l.onnx"
    lower(model=p.export(W8A8), target=Target.load("cpu"), out=lowered, progress=SILENT)
    profile, specs = Profile(_ranges(p)), input_specs(lowered)
    blocks = len({block_of_name(name) for name in p.adapter.layer_roles(p.source)} - {None})
    segments = cut_segments(lowered, specs, profile, blocks, memory=lambda load: load.weights, budget=None)
    products = [layer for segment in segments for layer in expected_precision(segment.graph).quantized]
    assert sorted(products, key=str) == sorted(expected_precision(lowered).quantized, key=str)
    for shape in p.case.shapes:
        feeds = p.feeds(shape)
        known: dict[str, Any] = dict(feeds)
        for segment in segments:
            found = run(segment.graph, {spec.name: known[spec.name] for spec in segment.inputs})
            known |= dict(zip(segment.outputs, found, strict=True))
        for name, want in zip(graph_outputs(lowered), run(lowered, {spec.name: feeds[spec.name] for spec in specs}), strict=True):
            np.testing.assert_array_equal(known[name], want)


def _ranges(p: PreparedCase) -> dict[str, Range]:
    """Of the sizes of the case, axis by axis."""
    axes = {}
    for name in {d for s in p.adapter.inputs(p.source) for d in s.dims if isinstance(d, str)}:
        low, opt, high = sorted(shape[name] for shape in p.case.shapes)
        axes[name] = Range(low, opt, high)
    return axes


def check_engine(p: PreparedCase, scheme: Scheme | None) -> None:
    """TensorRT-RTX builds an engine for sm_89 that serves all shapes, or fails as the case says: a fix is noticed."""
    label = {None: "fp16", W8A8: "w8a8", W4A16: "w4a16"}[scheme]
    target = dataclasses.replace(Target.load("rtx-ada"), arch=("sm_89",))
    lowered = p.folder / f"{label}.lowered.onnx"

    def build() -> None:
        lower(model=p.export(scheme), target=target, out=lowered, progress=SILENT)
        backend(target.backend).build(
            lowered=lowered,
            target=target,
            profile=Profile(_ranges(p)),
            inputs=input_specs(lowered),
            out=p.folder / label,
            work=p.folder / f"{label}.work",
            progress=SILENT,
        )

    if label in p.case.no_engine:
        with pytest.raises(VditcError, match=p.case.no_engine[label]):
            build()
    else:
        build()
        assert (p.folder / label / "model.plan").stat().st_size > 0


def check_stamped(p: PreparedCase) -> None:
    """The stamped graph is the graph of the whole model, node for node."""
    assert any(loop.traced < loop.count for loop in p.adapter.loops(p.source.config)), "the case is too short to stamp anything"
    stamped, whole = (ir.load(p.export(None, whole=w)) for w in (False, True))

    def lines(model: ir.Model) -> list[str]:
        return [
            f"{n.name} = {n.op_type}({', '.join(str(v and v.name) for v in n.inputs)}) {sorted(str(a) for a in n.attributes.values())}"
            for n in model.graph
        ]

    assert lines(stamped) == lines(whole)
    assert {n: v.const_value.tobytes() for n, v in stamped.graph.initializers.items() if v.const_value} == {
        n: v.const_value.tobytes() for n, v in whole.graph.initializers.items() if v.const_value
    }
