"""Attention in bfloat16, and the operators of opset 23, in graphs of a model; what each does to a graph is in the *.onnxtxt files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import tiny_export

from vditc.errors import DialectError, InputError
from vditc.graph_passes.claims import CheckClaims
from vditc.graph_passes.core import run_passes
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, lower
from vditc.graph_passes.target_spec import lowered_for
from vditc.graph_passes.tolerances import activation_codes, tolerance
from vditc.model_dir import ModelDir
from vditc.pipeline.verify_passes import VerifyPasses
from vditc.progress import SILENT
from vditc.target import Target

RTX = Target.load("rtx-ada")
RANGE, LATER = RTX.attending("bf16"), dataclasses.replace(RTX, opset=23)
NEW = ("keep-attention-in-range", "raise-opset", "form-attention", "form-rms-normalization")


def exported(tiny: ModelDir, folder: Path, scheme: str) -> Path:
    schemes = {**tiny_export.SCHEMES, **tiny_export.FEW_BITS, **tiny_export.FLOATS}
    return tiny_export.export(tiny, tiny_export.calibration(tiny, schemes[scheme]), folder / "model.onnx")


@pytest.mark.parametrize("target", [RANGE, LATER, dataclasses.replace(RANGE, opset=23)], ids=["range", "later", "both"])
@pytest.mark.parametrize("scheme", ["fp16", "w8a8"])
def test_numbers(tiny: ModelDir, tmp_path: Path, target: Target, scheme: str) -> None:
    """Every new pass stays within its tolerance, and is not without effect where it rounds."""
    path = exported(tiny, tmp_path, scheme)
    model, verifier = load(path), VerifyPasses(path)
    _, facts = run_passes(model, pipeline(target), Spec.canonical(), observers=[CheckClaims(), verifier])
    lowered_for(target).verify(model, where="here")
    errors = {f.name.partition("{")[0]: v and v.error for f, v in zip(facts, verifier.verdicts, strict=True)}
    found = {name: errors[name] for name in NEW if name in errors}
    assert all(error is not None for error in found.values()), found
    assert found.get("raise-opset", 0) == 0
    if target.attention:
        assert found["keep-attention-in-range"] > 1e-4  # type: ignore[operator] # eight bits do something
    assert not [r for f in facts for r in f.refusals if f.name.partition("{")[0] in NEW]
    count = Counter(n.op_type for n in model.graph)
    blocks = 2
    assert (count["Attention"], count["Softmax"]) == ((2 * blocks, 0) if target.opset == 23 else (0, 2 * blocks))
    assert count["RMSNormalization"] == (4 * blocks if target.opset == 23 else 0)
    assert dict(model.graph.opset_imports) == {"": target.opset} and model.ir_version == (11 if target.opset == 23 else 10)


@pytest.mark.parametrize("scheme", ["w8a6", "w8a4", "fp8"])
def test_tolerances_of_few_bits(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    path = exported(tiny, tmp_path, scheme)
    model, verifier = load(path), VerifyPasses(path)
    target = dataclasses.replace(Target.load("rtx-blackwell"), attention="bf16")
    run_passes(model, pipeline(target), Spec.canonical(), observers=[verifier])
    assert tolerance("attention-bf16", "fp16", activation_codes(model.graph)) is not None


def test_attention_is_bfloat16_and_nothing_else(tiny: ModelDir, tmp_path: Path) -> None:
    path = lower(model=exported(tiny, tmp_path, "w8a8"), target=RANGE, out=tmp_path / "lowered.onnx", progress=SILENT).files[0]
    model = load(path)
    lowered_for(RANGE).verify(model, where="here")
    with pytest.raises(DialectError, match=r"rule computes-in-one-type .*found MatMul computes in bfloat16; wanted float16"):
        lowered_for(RTX).verify(model, where="here")


def test_attention_is_never_split(tiny: ModelDir, tmp_path: Path) -> None:
    """A softmax of float16 between products of bfloat16, where attention may be bfloat16."""
    path = lower(model=exported(tiny, tmp_path, "w8a8"), target=RANGE, out=tmp_path / "lowered.onnx", progress=SILENT).files[0]
    model = load(path)
    softmax = next(n for n in model.graph if n.op_type == "Softmax")
    for node, at, to in ((softmax, 0, 10), (next(iter(softmax.outputs[0].uses())).node, 0, 16)):
        cast = ir.node("Cast", [node.inputs[at]], {"to": to}, name=f"split{to}")
        cast.outputs[0].name = f"split{to}"
        model.graph.insert_before(node, cast)
        node.replace_input_with(at, cast.outputs[0])
    with pytest.raises(DialectError, match=r"rule computes-in-one-type .*computes in bfloat16; wanted float16"):
        lowered_for(RANGE).verify(model, where="here")


def test_a_later_opset_where_a_target_reads_it() -> None:
    assert [p.name for p in pipeline(LATER) if p.name in NEW] == list(NEW[1:])
    assert not [p.name for p in pipeline(RTX) if p.name in NEW]
    assert lowered_for(RTX).opsets == (21, 23) and lowered_for(Target.load("h100")).opsets == (21,)
    with pytest.raises(InputError, match="target h100: found opsets 9 to 21; wanted opset 23 among them"):
        pipeline(dataclasses.replace(Target.load("h100"), opset=23))
    with pytest.raises(InputError, match="found opset = 22; wanted one of 21, 23"):
        pipeline(dataclasses.replace(RTX, opset=22))


def test_operators_mean_the_same_in_the_later_opset() -> None:
    """From 21 to 23 operators took more types, and two of them one more attribute."""

    def said(schema: onnx.defs.OpSchema) -> dict[str, object]:
        parameters = [(p.name, p.option) for p in (*schema.inputs, *schema.outputs)]
        return {"": parameters} | {name: (a.type, a.default_value.SerializeToString()) for name, a in schema.attributes.items()}

    changed: dict[str, set[str]] = {}
    for name in sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain}):
        try:
            old, new = (onnx.defs.get_schema(name, opset, "") for opset in (21, 23))
        except onnx.defs.SchemaError:
            continue
        if (before := said(old)) != (after := said(new)):
            assert before.items() <= after.items(), name
            changed[name] = after.keys() - before.keys()
    assert changed == {"DequantizeLinear": {"output_dtype"}, "QuantizeLinear": {"precision"}}
