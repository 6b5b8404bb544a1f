"""The dialect of one target's lowered graph: the rules of every lowered graph, and what the target's file and quirks add to them.

Rules that a quirk adds are called as the quirk is; rules of the dialect that hold because of a quirk say so when they are broken.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vditc.errors import InputError
from vditc.graph_passes.patterns import blocked, producer, weight_like
from vditc.graph_passes.spec import COMMON, IR_VERSIONS, OF_QUIRKS, OPSET, Checked, Rule, Spec, Violation, plugin_operators
from vditc.numerics import QType
from vditc.quirk import FLOAT, Products, Quirk
from vditc.target import Target

_CODES = {ir.DataType.INT8: "int8", ir.DataType.INT4: "int4", ir.DataType.FLOAT8E4M3FN: "fp8_e4m3"}


def lowered_for(target: Target) -> Spec:
    """What `lowered/<target>.onnx` may hold; InputError when a quirk names a rule that the dialect has not."""
    known = {_name(rule) for rule in (*COMMON, *OF_QUIRKS)}
    for quirk in target.quirks:
        if unknown := sorted(set(quirk.rules) - known):
            raise InputError(
                found=f"rules {', '.join(unknown)}",
                wanted=f"some of {', '.join(sorted(known))}",
                where=f"quirk {quirk.name}",
                fix="correct the names",
            )
    named = [rule for rule in OF_QUIRKS if any(_name(rule) in quirk.rules for quirk in target.quirks)]
    rules = [plugin_operators, *(_because(rule, target) for rule in (*COMMON, *named)), _opset(target), _products(target)]
    rules += [_operators(quirk) for quirk in target.quirks if quirk.operators]
    rules += [_types(quirk) for quirk in target.quirks if quirk.types]
    least, greatest = target.opsets
    later = (opset for opset in IR_VERSIONS if opset != OPSET and least <= opset <= greatest)
    return Spec(f"lowered to {target.compute} for {target.name}", target.compute, tuple(rules), (OPSET, *later), target.attention)


def _because(rule: Rule, target: Target) -> Rule:
    """The same rule, with the quirks that it holds because of."""
    reasons = [_reason(quirk) for quirk in target.quirks if _name(rule) in quirk.rules]
    return _named(lambda c: rule(c), _name(rule), " ".join([(rule.__doc__ or "").strip(), *(f"{target.name}: {r}" for r in reasons)]))


def _opset(target: Target) -> Rule:
    least, greatest = target.opsets

    def check(c: Checked) -> Iterator[Violation]:
        if not least <= (opset := dict(c.graph.opset_imports).get("", 0)) <= greatest:
            yield Violation("model", f"opset {opset}", f"{least} to {greatest}")

    return _named(check, "opset-of-target", f"{target.runtime} reads no other.")


def _products(target: Target) -> Rule:
    def check(c: Checked) -> Iterator[Violation]:
        for node in c.graph:
            weight = _dequantized(node.inputs[1]) if node.op_type == "MatMul" else None
            if weight is None or not weight_like(weight.outputs[0]):
                continue
            activation = _dequantized(node.inputs[0])
            codes = [None if d is None else _CODES.get(c.types.of.get(d.inputs[0])) for d in (weight, activation)]  # type: ignore[arg-type]
            size = weight.attributes["block_size"].as_int() if blocked(weight) else None
            if codes[0] is not None and not any(_holds(row, codes[0], size, codes[1] or FLOAT) for row in target.products):
                block = "" if size is None else f" in blocks of {size}"
                yield Violation(node.name or node.op_type, f"{codes[1] or FLOAT} x {codes[0]}{block}", "; ".join(map(str, target.products)))

    return _named(check, "products-of-target", f"target {target.name} runs no others.")


def _operators(quirk: Quirk) -> Rule:
    def check(c: Checked) -> Iterator[Violation]:
        for node in c.graph:
            if node.op_type in quirk.operators:
                yield Violation(node.name or node.op_type, f"operator {node.op_type}", f"none of {', '.join(quirk.operators)}")

    return _named(check, quirk.name, _reason(quirk))


def _types(quirk: Quirk) -> Rule:
    def check(c: Checked) -> Iterator[Violation]:
        for value, found in c.types.of.items():
            if found.name.lower() in quirk.types:
                node = value.producer() or next((use.node for use in value.uses()), None)
                where = str(value.name) if node is None else node.name or node.op_type
                yield Violation(where, f"{value.name} of {found.name.lower()}", f"none of {', '.join(quirk.types)}")

    return _named(check, quirk.name, _reason(quirk))


def _holds(row: Products, weight: str, size: int | None, activation: str) -> bool:
    """Whether products of these codes are of the row. A graph tells no more of a type than the codes that hold it."""
    return (
        (not row.weight or weight in {_container(w, 4) for w in row.weight})
        and (not row.granularity or any((g == "per_group") == (size is not None) for g in row.granularity))
        and (not row.group_sizes or size is None or size in row.group_sizes)
        and (not row.activation or activation in {_container(a, 8) for a in row.activation})
    )


def _container(name: str, least: int) -> str:
    """Codes that hold a type: INT4 or INT8 for integers, of at least so many bits."""
    if name == FLOAT or not QType(name).integer:
        return name
    return "int4" if max(QType(name).bits, least) <= 4 else "int8"


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that an operand comes from, maybe through a Cast."""
    cast = producer(value, "Cast")
    return producer(value if cast is None else cast.inputs[0], "DequantizeLinear")


def _reason(quirk: Quirk) -> str:
    return f"{quirk.says} [{quirk.source}]"


def _name(rule: Rule) -> str:
    return rule.__name__.replace("_", "-")


def _named(rule: Rule, name: str, doc: str) -> Rule:
    rule.__name__, rule.__doc__ = name, doc
    return rule
