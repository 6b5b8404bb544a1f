"""Passes are parsed, run in order, verified after each, and say what they did."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
import pytest
from attention_graph import TEXT_FORM, attention_model

from vditc.errors import DialectError, InputError, VditcError
from vditc.graph_passes.claims import CheckClaims, structure
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import Observer, Pass, PassFacts, Result, check_order, run_passes
from vditc.graph_passes.eliminate_dead_nodes import EliminateDeadNodes
from vditc.graph_passes.fold_constants import FoldConstants
from vditc.graph_passes.legalize_for_target import Blocks, LegalizeForTarget
from vditc.graph_passes.pipelines import parse_pass, pipeline
from vditc.graph_passes.spec import Spec
from vditc.target import Target, builtin_targets


def test_options_are_fields() -> None:
    assert parse_pass("fold-constants{size_limit=7}") == FoldConstants(size_limit=7)
    assert parse_pass(" fold-constants ") == FoldConstants()
    assert parse_pass(str(ConvertComputeType(to="bf16"))) == ConvertComputeType(to="bf16")
    assert parse_pass("legalize-for-target{blocks=32:16}") == LegalizeForTarget(blocks=Blocks.of((32, 16)))
    assert parse_pass(str(LegalizeForTarget(blocks=Blocks.of((64,))))).blocks == (64,)  # type: ignore[attr-defined]
    assert parse_pass(str(LegalizeForTarget(blocks=Blocks()))) == LegalizeForTarget(blocks=Blocks())
    assert LegalizeForTarget().blocks == Target.load("rtx-ada").int4_blocks
    assert str(EliminateDeadNodes()) == "eliminate-dead-nodes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold", r"found pass 'fold'; wanted one of convert-compute-type, "),
        ("fold-constants{limit=7}", r"found option 'limit'; wanted one of size_limit"),
        ("fold-constants{size_limit=many}", r"found size_limit=many; wanted size_limit of type int"),
        ("fold-constants{size_limit=7", r"fold-constants\{size_limit=7'; wanted a closing brace"),
        ("fold-constants{size_limit}", r"found 'size_limit'; wanted size_limit=value, once"),
        ("fold-constants{size_limit=}", r"found size_limit=; wanted size_limit of type int"),
        ("fold-constants{size_limit=1,size_limit=2}", r"found 'size_limit=2'; wanted size_limit=value, once"),
        ("fold-constants{", r"wanted a closing brace"),
        ("eliminate-dead-nodes{hard=1}", r"found option 'hard'; wanted no option"),
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
    class Watch(Observer):
        seen: ClassVar[list[str]] = []

        def start(self, model: ir.Model) -> None:
            self.seen.append(f"{len(model.graph)}")

        def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
            assert facts.nodes_after == len(model.graph)
            self.seen.append(facts.name)

    passes = (FoldConstants(), ConvertComputeType(), EliminateDeadNodes())
    model = attention_model()
    nodes = len(model.graph)
    spec, facts = run_passes(model, passes, Spec.canonical(), observers=[Watch()])
    assert spec == Spec.lowered("fp16")
    assert Watch.seen == [f"{nodes}", *map(str, passes)]
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


def test_a_pass_that_puts_a_node_in_front_of_what_it_reads_is_named(registry: None) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Unsort(Pass):
        name: ClassVar[str] = "unsort"

        def call(self, model: ir.Model) -> Result:
            softmax = next(n for n in model.graph if n.op_type == "Softmax")
            model.graph.remove(softmax)
            model.graph.insert_before(model.graph[0], softmax)
            return Result(model, modified=True)

    with pytest.raises(DialectError, match=r"^after pass unsort: node softmax: found \S+ read before it is computed; wanted every node"):
        run_passes(attention_model(), (FoldConstants(), Unsort()), Spec.canonical())
    model = attention_model()
    Unsort().call(model)
    with pytest.raises(InputError, match=r"^before the first pass: node softmax: found"):
        run_passes(model, (FoldConstants(),), Spec.canonical())


def test_a_bad_graph_is_refused_before_the_first_pass() -> None:
    model = attention_model()
    model.ir_version = 11
    with pytest.raises(InputError, match=r"before the first pass: rule standard-opset .* found opset 21, IR version 11"):
        run_passes(model, (), Spec.canonical())


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            "legalize-for-target convert-compute-type",
            "legalize-for-target without convert-compute-type before it; wanted lowered: every value has the type .*; "
            "put convert-compute-type before legalize-for-target$",
        ),
        ("flatten-attention-outputs", "found flatten-attention-outputs without convert-compute-type before it"),
        (
            "convert-compute-type eliminate-dead-nodes convert-compute-type{to=bf16}",
            "found convert-compute-type after convert-compute-type; wanted canonical: the graph computes in float32",
        ),
    ],
)
def test_an_order_that_cannot_be_names_both_passes_and_changes_nothing(passes: str, message: str) -> None:
    model = attention_model()
    before = structure(model)
    with pytest.raises(InputError, match=message):
        run_passes(model, [parse_pass(p) for p in passes.split()], Spec.canonical())
    assert structure(model) == before


def test_the_graph_itself_may_have_what_a_pass_needs(registry: None) -> None:
    lowered = attention_model()
    spec, _ = run_passes(lowered, [ConvertComputeType()], Spec.canonical())
    run_passes(lowered, [parse_pass("legalize-for-target")], spec)
    constants = attention_model(TEXT_FORM.replace("  freq =", "  half = Constant<value_float = 0.5>()\n  freq ="))
    with pytest.raises(InputError, match="found convert-compute-type without fold-constants before it"):
        run_passes(constants, [ConvertComputeType()], Spec.canonical())
    run_passes(constants, [FoldConstants(), ConvertComputeType()], Spec.canonical())

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needs(Pass):
        name: ClassVar[str] = "needs-canonical"
        needs: ClassVar[frozenset[str]] = frozenset({"canonical"})

        def call(self, model: ir.Model) -> Result:
            raise AssertionError("not run")

    with pytest.raises(InputError, match="found needs-canonical on a graph that is not canonical"):
        run_passes(lowered, [Needs()], spec)


def test_a_property_that_does_not_exist_is_refused(registry: None) -> None:
    with pytest.raises(TypeError, match="pass 'misspelt' names the property 'constant-folded'; known are canonical, "):

        class Misspelt(Pass):
            name: ClassVar[str] = "misspelt"
            gives: ClassVar[frozenset[str]] = frozenset({"constant-folded"})


@pytest.mark.parametrize("target", builtin_targets())
def test_pipelines_are_in_an_order_that_can_be(target: str) -> None:
    check_order(pipeline(Target.load(target)), attention_model(), Spec.canonical())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    explicit: bool = False
    share: float = 0.5
    name_of: str = "x"


def test_options_of_every_type_survive_being_written_and_read(registry: None) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Optional(_Options, Pass):
        name: ClassVar[str] = "optional"

        def call(self, model: ir.Model) -> Result:
            raise AssertionError("not run")

    one = Optional(explicit=True, share=0.25, name_of="y")
    assert str(one) == "optional{explicit=true,share=0.25,name_of=y}"
    assert parse_pass(str(one)) == one and parse_pass(str(Optional())) == Optional()
    for text, message in {
        "explicit=1": "found explicit=1; wanted explicit=true or explicit=false",
        "explicit=False": "found explicit=False; wanted explicit=true or explicit=false",
        "share=half": "found share=half; wanted share of type float",
        "size=1": "found option 'size'; wanted one of explicit, share, name_of",
    }.items():
        with pytest.raises(InputError, match=message):
            parse_pass(f"optional{{{text}}}")


def test_a_pass_that_hides_what_it_changed_is_found(registry: None) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Liar(Pass):
        name: ClassVar[str] = "liar"

        def call(self, model: ir.Model) -> Result:
            next(n for n in model.graph if n.op_type == "Softmax").attributes["axis"] = ir.AttrInt64("axis", 3)
            return Result(model, modified=False)

    run_passes(attention_model(), (Liar(),), Spec.canonical())  # not every run pays for the check
    passes = (FoldConstants(), Liar(), EliminateDeadNodes())
    with pytest.raises(VditcError, match="after pass liar: found another graph than before; wanted the same graph"):
        run_passes(attention_model(), passes, Spec.canonical(), observers=[CheckClaims()])
