"""What TensorRT-RTX fuses of the families' lowered graphs, read from the plans: one row of figures for each family and recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import family_checks as checks
import numpy as np
import onnx_ir as ir
import pytest
from family_case import Case, cases
from lowered_graphs import save_blocks

from vditc.calibration import Calibration
from vditc.export.describe import describe_inputs
from vditc.export.stage import insert_weights, traced_graph
from vditc.export.write import write_model
from vditc.graph_passes.stage import lower
from vditc.numerics import Granularity, QType
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.engine_program import EngineProgram
from vditc.runtimes.fusion import summary
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.plan_text import program, read_plan
from vditc.runtimes.registry import backend
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_process import run_build, shapes
from vditc.schedule import Schedule
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.demo  # seconds each

ADA, BLACKWELL = (Target.load(name) for name in ("rtx-ada", "rtx-blackwell"))
W4A8 = Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=False), activation=checks.W8A8.activation)
W8 = "int8 x int8 -> float"  # sums in float32: in float16 they overflow
W4 = "int8 x int8 from int4 by a kernel of its own -> float"
HALF = "half x half from int4 -> half"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`transformed`: behind a balance and a shift of every input, which differ where layers read different tensors."""

    scheme: Scheme
    product: str
    transformed: bool


RECIPES = {
    "w8a8": Recipe(checks.W8A8, W8, True),
    "w8a8-static": Recipe(checks.W8A8_STEPS, W8, False),
    "w4a8": Recipe(W4A8, W4, True),
    "w4a16": Recipe(checks.W4A16, HALF, False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fused:
    """`products`: of quantized layers, by recipe; fewer than layers where those of the same codes are one. INT4 weights are not merged.

    `norm`, `gelu`, `silu`: inputs that the kernel of a modulated norm, of GELU, of SiLU quantizes; `rest`: those of attention, a
    residual stream or a text. `cut`: QuantizeLinear nodes of several kernels.
    """

    layers: int
    products: dict[str, int]
    attentions: int
    norm: dict[str, int]
    gelu: int
    rest: dict[str, int]
    silu: int = 0
    cut: Callable[[str], tuple[str, ...]] = lambda recipe: ()


def each(w8a8: int, static: int, w4a8: int | None = None) -> dict[str, int]:
    return {"w8a8": w8a8, "w8a8-static": static, "w4a8": w8a8 if w4a8 is None else w4a8}


# Four blocks each, CogVideoX five. q, k, v of a block are one product; k and v of the text one product a block behind balances, all blocks'
# one product without. W8A8 quantizes a text once for each block where balances differ.
FUSED = {
    # Per block three norms, fc2, two outputs of attention; the text.
    "wan": Fused(
        layers=40,
        products=each(w8a8=28, static=25, w4a8=40),
        attentions=8,
        norm=each(w8a8=12, static=12),
        gelu=4,
        rest=each(w8a8=12, static=9),
    ),
    # Tokens of text and video are normed apart and joined before they are quantized: means of either in a kernel of their own.
    "cogvideox-2b": Fused(
        layers=30,
        products=each(w8a8=20, static=20, w4a8=30),
        attentions=5,
        norm=each(w8a8=0, static=0),
        gelu=5,
        rest=each(w8a8=5, static=5),
        cut=lambda _: tuple(
            f"transformer_blocks.{n}.{layer}/QuantizeLinear" for n in range(5) for layer in ("attn1.to_q", "ff.net.0.proj")
        ),
    ),
    # Two streams a block, four blocks of one stream, two of the refiner, whose feed-forward has SiLU; q/k/v and proj_mlp of single blocks
    # are balanced apart. The first norm of the text has more readers than the kernel takes.
    "hunyuan-video": Fused(
        layers=80,
        products=each(w8a8=48, static=48, w4a8=80),
        attentions=10,
        norm=each(w8a8=24, static=23),
        gelu=12,
        rest=each(w8a8=10, static=10),
        silu=2,
        cut=lambda recipe: ("transformer_blocks.0.attn.add_q_proj/QuantizeLinear",) if recipe == "w8a8-static" else (),
    ),
    # No norm before cross-attention: its q is of the residual stream.
    "ltx-0.9.0": Fused(
        layers=40,
        products=each(w8a8=28, static=25, w4a8=40),
        attentions=8,
        norm=each(w8a8=8, static=8),
        gelu=4,
        rest=each(w8a8=16, static=13),
    ),
    # Eight blocks, spatial and temporal by turns; cross-attention in spatial ones.
    "latte": Fused(
        layers=64,
        products=each(w8a8=44, static=41, w4a8=64),
        attentions=12,
        norm=each(w8a8=16, static=16),
        gelu=8,
        rest=each(w8a8=20, static=17),
    ),
    # As LTX-Video; the first norm is in the kernel of the patches' positions, and quantized by another.
    "pixart-alpha-1024": Fused(
        layers=40,
        products=each(w8a8=28, static=25, w4a8=40),
        attentions=8,
        norm=each(w8a8=7, static=7),
        gelu=4,
        rest=each(w8a8=16, static=13),
        cut=lambda _: ("transformer_blocks.0.attn1.to_q/QuantizeLinear",),
    ),
}
PARAMETERS = [
    pytest.param(c, marks=() if c.name == "wan" else pytest.mark.slow) for c in cases() if c.name in FUSED
]  # tracing takes seconds


@dataclasses.dataclass
class Family:
    """A small model and its traced graph."""

    case: checks.PreparedCase
    graph: ir.Model

    def calibration(self, recipe: Recipe) -> Calibration:
        make = self.case.transformed if recipe.transformed else self.case.calibration
        return dataclasses.replace(make(recipe.scheme), schedule=Schedule.flow(np.array((1.0, 0.8, 0.5, 0.0))))

    def built(self, recipe: str, target: Target) -> tuple[EngineFacts, EngineProgram]:
        """The engine of all sizes of the case."""
        p, folder = self.case, self.case.folder / f"{recipe}-{'-'.join(target.arch)}-{target.name}"
        graph = self.graph.clone()
        insert_weights(graph, p.source, self.calibration(RECIPES[recipe]))
        describe_inputs(graph, p.adapter.inputs(p.source), p.adapter.sizes(p.source))
        write_model(graph, folder / "model.onnx", lambda: None)
        lowered = lower(model=folder / "model.onnx", target=target, out=folder / "lowered" / "graph.onnx", progress=SILENT).files[0]
        sizes = {name: sorted(shape[name] for shape in p.case.shapes) for name in p.case.shapes[0]}
        facts = backend(target.backend).build(
            lowered=lowered,
            target=target,
            profile=Profile({name: Range(*ends) for name, ends in sizes.items()}),
            inputs=input_specs(lowered),
            out=folder / "engine",
            work=folder / "work",
            progress=SILENT,
        )
        return facts, program(read_plan(folder / "engine" / "model.plan"))


@pytest.fixture(scope="module", params=PARAMETERS, ids=str)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    case: Case = request.param
    prepared = checks.PreparedCase.make(case, tmp_path_factory.mktemp(case.name))
    yield Family(prepared, traced_graph(prepared.source, prepared.adapter, whole=False))


def check(family: Family, recipe: str, target: Target) -> None:
    wanted, product = FUSED[family.case.case.name], RECIPES[recipe].product
    facts, engine = family.built(recipe, target)
    assert facts.compute_capabilities == target.arch
    assert list(facts.layers.values()).count(product) == wanted.layers
    assert facts.gemms[product] == wanted.products.get(recipe, wanted.layers)
    assert not [g for g in facts.gemms if g.startswith("int8") and g != product]
    assert facts.attentions == wanted.attentions
    assert engine.repeated_sizes == ()  # no tensor of tokens by tokens
    if recipe == "w4a16":
        assert facts.fused == {} and facts.cut == {}
        return
    counts = {"norm": wanted.norm[recipe], "gelu": wanted.gelu, "rest": wanted.rest[recipe], "silu": wanted.silu}
    assert facts.fused == {kind: count for kind, count in counts.items() if count}
    assert tuple(facts.cut) == wanted.cut(recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rtx_ada(family: Family, recipe: str) -> None:
    check(family, recipe, ADA)


@pytest.mark.parametrize("recipe", ["w8a8", *(pytest.param(r, marks=pytest.mark.slow) for r in RECIPES if r != "w8a8")])
def test_rtx_blackwell(family: Family, recipe: str) -> None:
    check(family, recipe, BLACKWELL)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ADA.arch)
def test_one_architecture(family: Family, arch: str) -> None:
    """Not only in an engine for all of them."""
    check(family, "w8a8", dataclasses.replace(ADA, arch=(arch,)))


def test_scores_of_an_attention_that_is_not_fused_are_seen(tmp_path: Path) -> None:
    lowered = save_blocks(tmp_path / "l.onnx", "w8a8", wide_attention=True)
    profile = Profile({"batch": Range(1, 2, 2), "tokens": Range(16, 64, 256), "text_tokens": Range(8, 8, 8)})
    request = BuildRequest(
        module="tensorrt_rtx",
        lowered=str(lowered),
        plan=str(tmp_path / "plan"),
        shapes=shapes(input_specs(lowered), profile),
        compute_capabilities=["SM89"],
    )
    run_build(request, tmp_path / "work")
    engine = program(read_plan(tmp_path / "plan"))
    assert engine.attentions == ()
    assert any(size.startswith("float[") for size in engine.repeated_sizes)
    told = summary(engine)
    assert told["attentions"] == 0 and told["repeated_sizes"] == list(engine.repeated_sizes)
    assert told["kernels_that_write_codes"] == {"Gelu + ReduceMax + QuantizeLinear": 1, "ReduceMax + QuantizeLinear": 6}
