"""What folds in the graphs of the families, and what stays explicit and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import family_checks as checks
import numpy as np
import pytest
import tolerances
from family_case import Case, cases

from vditc.graph_passes.stage import LowerFacts, load, lower
from vditc.progress import SILENT
from vditc.scheme import Scheme
from vditc.target import Target

FAMILIES = ("wan", "cogvideox-2b", "hunyuan-video", "ltx-0.9.0", "latte", "pixart-alpha-1024")
TARGETS = {name: Target.load(name) for name in ("cpu", "rtx-ada")}
# Tracing takes seconds.
PARAMETERS = [pytest.param(c, marks=() if c.name == "wan" else pytest.mark.slow) for c in cases() if c.name in FAMILIES]

# Layers whose balance stays, and why; all others fold.
GELU = "behind Gelu"
TEXT = "is read with 4 transforms"  # one for each block
BALANCE: Mapping[str, Mapping[str, str]] = {
    "wan": {"blocks.N.attn2.to_k": TEXT, "blocks.N.ffn.net.2": GELU},
    "cogvideox-2b": {"transformer_blocks.N.ff.net.2": GELU},
    "hunyuan-video": {
        "context_embedder.token_refiner.refiner_blocks.N.ff.net.2": "has 2 readers",  # x * sigmoid(x)
        "transformer_blocks.N.attn.to_out.0": "attn/Reshape_N has 2 readers",  # one attention of video and text
        "transformer_blocks.N.attn.to_add_out": "attn/Reshape_N has 2 readers",
        "transformer_blocks.N.ff.net.2": GELU,
        "transformer_blocks.N.ff_context.net.2": GELU,
        "single_transformer_blocks.N.proj_out": "act_mlp/Gelu stay explicit",  # the half behind attention folds
    },
    "ltx-0.9.0": {
        "transformer_blocks.N.attn2.to_q": "Add_N has 2 readers",  # the residual stream
        "transformer_blocks.N.attn2.to_k": TEXT,
        "transformer_blocks.N.ff.net.2": GELU,
    },
}
BALANCE |= {  # type: ignore[operator]
    "latte": {**BALANCE["ltx-0.9.0"], "temporal_transformer_blocks.N.ff.net.2": GELU},
    "pixart-alpha-1024": BALANCE["ltx-0.9.0"],
}

# Layers that still divide by the scale of the step. One scale of the text serves all blocks here.
STEPS: Mapping[str, Mapping[str, str]] = {
    "wan": {
        "blocks.N.attn2.to_q": "norm2/LayerNormalization is constant",
        "blocks.N.attn2.to_k": GELU,
        "blocks.N.ffn.net.2": GELU,
    },
    "cogvideox-2b": BALANCE["cogvideox-2b"],
    "hunyuan-video": {
        "context_embedder.token_refiner.refiner_blocks.N.attn.to_q": "norm1/LayerNormalization is constant",
        "context_embedder.token_refiner.refiner_blocks.N.ff.net.0.proj": "norm2/LayerNormalization is constant",
        "context_embedder.token_refiner.refiner_blocks.N.ff.net.2": "has 2 readers",
        "transformer_blocks.N.attn.to_out.0": "attn/Reshape_N has 2 readers",
        "transformer_blocks.N.attn.to_add_out": "attn/Reshape_N has 2 readers",
        "transformer_blocks.N.ff.net.2": GELU,
        "transformer_blocks.N.ff_context.net.2": GELU,
        "single_transformer_blocks.N.proj_out": GELU,
    },
    "ltx-0.9.0": {**BALANCE["ltx-0.9.0"], "transformer_blocks.N.attn2.to_k": GELU},
    "latte": {**BALANCE["latte"], "transformer_blocks.N.attn2.to_k": GELU},
    "pixart-alpha-1024": {**BALANCE["pixart-alpha-1024"], "transformer_blocks.N.attn2.to_k": GELU},
}


@pytest.fixture(scope="module", params=PARAMETERS, ids=str)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[checks.PreparedCase]:
    case: Case = request.param
    yield checks.PreparedCase.make(case, tmp_path_factory.mktemp(case.name))


def lowered(p: checks.PreparedCase, target: str, scheme: Scheme, *, transformed: bool) -> LowerFacts:
    out = p.folder / f"{target}-{transformed}.onnx"
    return lower(model=p.export(scheme, transformed=transformed), target=TARGETS[target], out=out, progress=SILENT)


def check(facts: LowerFacts, name: str, wanted: Mapping[str, str]) -> None:
    """Just these layers are refused, for these reasons; N for the numbers of blocks and nodes."""
    own = next(f for f in facts.passes if f.name.startswith(name))
    assert own.modified
    found: dict[str, str] = {}
    for refusal in own.refusals:
        layer = re.sub(r"(blocks\.)\d+", r"\1N", refusal.node.rsplit("/", 1)[0])
        found[layer] = re.sub(r"_\d+", "_N", refusal.reason)
    assert found.keys() == wanted.keys(), found
    assert not {layer: found[layer] for layer, reason in wanted.items() if reason not in found[layer]}


@pytest.mark.parametrize("target", TARGETS)
def test_balances(prepared: checks.PreparedCase, target: str) -> None:
    facts = lowered(prepared, target, checks.W8A8, transformed=True)
    check(facts, "fold-channel-balance", BALANCE[prepared.case.name])
    for shape in prepared.case.shapes:
        feeds = prepared.feeds(shape)
        error = checks.distance(checks.run(facts.files[0], feeds), checks.run(prepared.export(checks.W8A8, transformed=True), feeds))
        assert error <= tolerances.LOWERED[TARGETS[target].compute, "int8 folded"]


@pytest.mark.parametrize("target", TARGETS)
def test_step_scales(prepared: checks.PreparedCase, target: str) -> None:
    facts = lowered(prepared, target, checks.W8A8_STEPS, transformed=False)
    check(facts, "fold-temporal-scales", STEPS[prepared.case.name])
    for shape in prepared.case.shapes:
        feeds = prepared.feeds(shape) | {"step": np.array([1])}
        error = checks.distance(checks.run(facts.files[0], feeds), checks.run(prepared.export(checks.W8A8_STEPS), feeds))
        assert error <= tolerances.LOWERED[TARGETS[target].compute, "int8 folded"]


def test_rotations(prepared: checks.PreparedCase) -> None:
    """Those behind attention are in no graph: v's codes have them, also where two streams attend together."""
    path, calibration = prepared.export(checks.W8A8, rotated=True), prepared.rotated(checks.W8A8)
    behind = {n for n, c in calibration.layers.items() if c.role.endswith("_attn.out")}
    assert behind == {n for n, c in calibration.layers.items() if c.transform.made_by}
    graph = load(path).graph
    for kind in ("/Mul_balance", "/Reshape_rotation_in"):  # named after the first layer of a group in the graph, which need not run first
        said = [prepared.groups[str(n.name).rsplit("/", 1)[0]] for n in graph if str(n.name).endswith(kind)]
        assert sorted(said) == sorted({prepared.groups[n] for n in calibration.layers.keys() - behind})
    model, shape = checks.quantized(prepared, calibration), prepared.case.shapes[1]
    assert checks.distance(checks.run(path, prepared.feeds(shape)), prepared.wanted(shape, model)) <= checks.FLIPS
