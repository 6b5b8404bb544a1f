"""What a target's file and quirks allow: violations name node, rule and target, and say who says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from attention_graph import TEXT_FORM, attention_model

from vditc.errors import DialectError, InputError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.facts import check_lowered
from vditc.graph_passes.pipelines import parse_pass
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.target_spec import lowered_for
from vditc.quirk import Quirk
from vditc.target import Target, builtin_targets

RTX = Target.load("rtx-ada")


def lowered(text: str = TEXT_FORM) -> ir.Model:
    model = attention_model(text)
    ConvertComputeType(to="fp16")(model)
    return model


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in model.graph if n.name == name)


def refused(model: ir.Model, target: Target, message: str) -> None:
    with pytest.raises(DialectError, match=message):
        lowered_for(target).verify(model, where="test")


@pytest.mark.parametrize("name", builtin_targets())
def test_every_target_has_its_dialect(name: str) -> None:
    target = Target.load(name)
    model = attention_model()
    ConvertComputeType(to=target.compute)(model)
    if name == "b300":
        refused(
            model,
            target,
            r"test: rule products-of-target of the lowered to fp16 for b300 dialect, node q/MatMul: found int8 x int8; wanted int4 or",
        )
    else:
        lowered_for(target).verify(model, where="test")


def test_blocks_beside_codes() -> None:
    """No rule of the dialect until the last pass is done: the plugin library may take such a product before."""
    old = "<axis=1>(k_codes, k_scale)"
    assert TEXT_FORM.count(old) == 1
    text = TEXT_FORM.replace(old, "<axis=0, block_size=32>(k_codes, k_blocks)")
    Spec.canonical().verify(attention_model(text), where="test")
    lowered_for(Target.load("cpu")).verify(attention_model(text), where="test")
    refused(
        lowered(text),
        RTX,
        "rule no-blocks-under-quantized-activations .*node k/MatMul: found quantized activation times weight with block_size 32.*Measured",
    )


def test_an_operator_that_the_parser_does_not_read() -> None:
    model = lowered()
    node(model, "softmax").op_type = "SequenceAt"  # whatever its inputs
    refused(
        model,
        RTX,
        r"rule unread-operators of the lowered to fp16 for rtx-ada dialect, node softmax: found operator SequenceAt.*operators\.md\]",
    )


def test_a_type_that_the_parser_does_not_read() -> None:
    quirks = tuple(dataclasses.replace(q, types=("int4",)) if q.types else q for q in RTX.quirks)
    refused(
        lowered(),
        dataclasses.replace(RTX, quirks=quirks),
        "rule unread-types of .* for rtx-ada .*, node v/weight: found v_codes of int4; wanted none of int4",
    )


def test_a_rule_of_the_dialect_says_because_of_what_it_holds() -> None:
    model = lowered()
    for value in model.graph.initializers.values():
        if value.name in ("one", "q_scale", "k_scale") and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype("float16"), name=value.name)
    refused(
        model, RTX, r"rule float32-scales of .* for rtx-ada .*half of the sums overflow.*rtx-ada: with float16 scales .* \[docs/targets\.md"
    )


def test_an_opset_outside_of_the_targets() -> None:
    refused(
        lowered(),
        dataclasses.replace(RTX, opsets=(22, 25)),
        r"rule opset-of-target .*node model: found opset 21; wanted 22 to 25; .*TensorRT-RTX",
    )


def test_blocks_that_no_product_has() -> None:
    """Of a weight that is only stored in few bits."""
    text = TEXT_FORM.replace("v = MatMul(x, v_w)", '["v/MatMul"] v = MatMul(x, v_w)')
    spec = lowered_for(RTX)
    spec = dataclasses.replace(spec, rules=tuple(r for r in spec.rules if r.__name__ == "products-of-target"))
    model = lowered(text)
    assert not list(spec.violations(model))
    node(model, "v/weight").attributes["block_size"] = ir.AttrInt64("block_size", 8)
    assert [(v.node, v.found) for _, v in spec.violations(model)] == [("v/MatMul", "float x int4 in blocks of 8")]


def test_a_quirk_that_names_no_rule(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text('says = "s"\nsource = "u"\nrules = ["float32-scales", "no-such-rule"]\n')
    odd = dataclasses.replace(RTX, quirks=(Quirk.load("odd.toml", tmp_path),))
    with pytest.raises(InputError, match=r"quirk odd: found rules no-such-rule; wanted some of computes-in-one-type, .*float32-scales"):
        lowered_for(odd)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An INT8 graph of two layers, lowered for rtx-ada."""
    ir.save(lowered(), tmp_path / "l.onnx")
    return tmp_path / "l.onnx"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"built_in": "rtx-ada"}, ""),
        ({"built_in": "b300"}, "rule products-of-target of the lowered to fp16 for b300 dialect"),
        ({"built_in": None}, ""),  # nobody has the file of a user's own target
        ({}, ""),
        ({"compute": "bf16"}, "rule computes-in-one-type of the lowered to bf16 dialect"),
    ],
)
def test_a_graph_of_a_bundle_is_checked_against_its_target(saved: Path, about: dict[str, Any], said: str) -> None:
    about = {"compute": "fp16", "attention": "fp16"} | about
    if not said:
        check_lowered(saved, about)
        return
    with pytest.raises(DialectError, match=said):
        check_lowered(saved, about)


@pytest.mark.parametrize("built_in", [True, False])
def test_attention_of_a_bundle_may_have_a_type_of_its_own(tmp_path: Path, built_in: bool) -> None:
    model = lowered()
    parse_pass("keep-attention-in-range")(model)
    ir.save(model, tmp_path / "l.onnx")
    about = {"compute": "fp16", "attention": "bf16", "built_in": "rtx-ada" if built_in else None}
    check_lowered(tmp_path / "l.onnx", about)
    with pytest.raises(DialectError, match="rule computes-in-one-type"):
        check_lowered(tmp_path / "l.onnx", about | {"attention": "fp16"})


def test_a_target_is_built_in_while_it_says_what_the_built_in_one_does() -> None:
    assert RTX.built_in and RTX.computing("bf16").built_in and RTX.attending("bf16").built_in
    assert not dataclasses.replace(RTX, opset=23).built_in and not dataclasses.replace(RTX, name="mine").built_in
