"""Passes are parsed, run in order, verified after each, and say what they did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir
import pytest
from attention_graph import attention_model

from vditc.errors import DialectError, InputError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import PASSES, Pass, Result, run_passes
from vditc.graph_passes.eliminate_dead_nodes import EliminateDeadNodes
from vditc.graph_passes.fold_constants import FoldConstants
from vditc.graph_passes.legalize_for_target import Blocks, LegalizeForTarget
from vditc.graph_passes.pipelines import parse_pass
from vditc.graph_passes.spec import Spec
from vditc.target import Target


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(PASSES)
    yield
    PASSES.clear()
    PASSES.update(before)


def test_options_are_fields() -> None:
    assert parse_pass("fold-constants{size_limit=7}") == FoldConstants(size_limit=7)
    assert parse_pass(" fold-constants ") == FoldConstants()
    assert parse_pass(str(ConvertComputeType(to="bf16"))) == ConvertComputeType(to="bf16")
    assert parse_pass("legalize-for-target{blocks=32:16}") == LegalizeForTarget(blocks=Blocks.of((32, 16)))
    assert parse_pass(str(LegalizeForTarget(blocks=Blocks.of((64,))))).blocks == (64,)  # type: ignore[attr-defined]
    assert LegalizeForTarget().blocks == Target.load("rtx-ada").int4_blocks
    assert str(EliminateDeadNodes()) == "eliminate-dead-nodes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold", r"found pass 'fold'; wanted one of convert-compute-type, "),
        ("fold-constants{limit=7}", r"wanted fold-constants\{option=value,...\} with options size_limit"),
        ("fold-constants{size_limit=many}", r"found size_limit=many; wanted size_limit of type int"),
        ("fold-constants{size_limit=7", r"fold-constants\{size_limit=7'; wanted"),
        ("fold-constants{", r"wanted a closing brace"),
        ("eliminate-dead-nodes{hard=1}", r"with options \(it has none\)"),
        ("legalize-for-target{blocks=64:x}", r"found blocks=64:x; wanted blocks of type Blocks"),
        ("legalize-for-target{blocks=0}", r"found blocks=0; wanted blocks of type Blocks"),
        ("convert-compute-type{to=fp8}", r"found to=fp8; wanted one of fp32, fp16, bf16"),
    ],
)
def test_a_pass_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_pass(text)


def test_a_name_is_declared_once(registry: None) -> None:
    with pytest.raises(TypeError, match="pass 'fold-constants' is declared twice"):

        class Again(FoldConstants):
            pass


def test_facts_and_callback() -> None:
    seen: list[tuple[str | None, str]] = []
    passes = (FoldConstants(), ConvertComputeType(), EliminateDeadNodes())
    model = attention_model()
    spec, facts = run_passes(
        model, passes, Spec.canonical(), on_pass=lambda before, one, _: seen.append((before.name if before else None, one.name))
    )
    assert spec == Spec.lowered("fp16")
    assert seen == [(None, "fold-constants"), ("fold-constants", "convert-compute-type"), ("convert-compute-type", "eliminate-dead-nodes")]
    assert [f.modified for f in facts] == [False, True, True]
    assert [f.nodes_after for f in facts[:-1]] == [f.nodes_before for f in facts[1:]]
    assert facts[-1].nodes_after == len(model.graph)
    assert not any(f.modified for f in run_passes(model, (FoldConstants(), EliminateDeadNodes()), spec)[1])


def test_a_pass_that_breaks_the_dialect_is_named(registry: None) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Break(Pass):
        name: ClassVar[str] = "break-softmax"

        def call(self, model: ir.Model) -> Result:
            next(n for n in model.graph if n.op_type == "Softmax").domain = "com.microsoft"
            return Result(model, modified=True)

    with pytest.raises(DialectError, match=r"after pass break-softmax: rule standard-domain of the canonical dialect, node softmax"):
        run_passes(attention_model(), (Break(),), Spec.canonical())


def test_a_bad_graph_is_refused_before_the_first_pass() -> None:
    model = attention_model()
    model.ir_version = 11
    with pytest.raises(DialectError, match=r"before the first pass: rule standard-opset .* found opset 21, IR version 11"):
        run_passes(model, (), Spec.canonical())
