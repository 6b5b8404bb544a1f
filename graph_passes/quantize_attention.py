"""Attention with INT8 scores, of the plugin library.

    %qs = Mul(%q, %scale)
    %kt = Transpose<perm=[0, 2, 3, 1]>(%k)
    %vh = Transpose<perm=[0, 2, 1, 3]>(%v)                %y = vditc.QAttention<scale, mask=1, k_by_token=1,
    %a  = MatMul(%qs, %kt)                                         v_by_token=1, y_by_token=1>(%q, %k, %v, %mask)
    %b  = Add(%a, %mask)                            ->
    %w  = Softmax<axis=-1>(%b)
    %h  = MatMul(%w, %vh)
    %y  = Transpose<perm=[0, 2, 1, 3]>(%h)

with %q, %k, %v of float16 or bfloat16; the mask may be missing. Transposes of heads and tokens that nobody else reads go into the operator.
Attentions of fewer than `min_keys` keys stay: with K keys in a layer of width W, attention is about K / 6 W of the work of the layers
beside it, 11 % at 1024 keys and the width of 1536 of Wan 2.1 1.3B, and text has 512 keys at most in most families. Keys are counted at
`sizes` (where `compile` runs the pass, of the profile's greatest clip), for axes that are not among them at the graph's default ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import ClassVar, Self

import onnx_ir as ir

from vditc.attention import AttentionScheme
from vditc.axis import Axis
from vditc.graph_passes.attentions import DecomposedAttention, decomposed_attentions
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import inserted, remove_unread
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.patterns import only_reader, producer
from vditc.graph_passes.sized_shapes import Sizes, sized_shapes
from vditc.plugins.catalogue import attach_functions
from vditc.plugins.qattention.op import MAX_WIDTH, SCALES, WIDTHS_OF, QAttention

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TURN = (0, 2, 1, 3)  # [batch, heads, tokens, width] <-> [batch, tokens, heads, width]


class AxisSizes(tuple[tuple[str, int], ...]):
    """Sizes of named axes, in steps; written "frames:21/height:60"."""

    def __new__(cls, text: str = "") -> Self:
        """ValueError for what is no such list."""
        return cls.of({name: int(size) for name, _, size in (part.partition(":") for part in text.split("/") if part)})

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Self:
        """From numbers; ValueError unless they are positive."""
        made = super().__new__(cls, sorted(sizes.items()))
        if any(size < 1 for _, size in made):
            raise ValueError(f"sizes {made}")
        return made

    def __str__(self) -> str:
        return "/".join(f"{name}:{size}" for name, size in self)


_DEFAULT = AxisSizes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeAttention(Pass):
    """Attention of many keys -> `vditc.QAttention`, INT8 scores. Refusal: a type, width or mask that it does not take, too few keys."""

    name: ClassVar[str] = "quantize-attention"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered"})

    min_keys: int = 1024
    smooth_k: bool = True
    sizes: AxisSizes = _DEFAULT

    @classmethod
    def asked(cls, scheme: AttentionScheme | None, sizes: Mapping[str, int]) -> Self | None:
        """The pass that a recipe's `[attention]` asks for, None for one without INT8 scores. `sizes`: of the profile's greatest clip."""
        return None if scheme is None or scheme.qk is None else cls(smooth_k=scheme.smooth_k, sizes=AxisSizes.of(sizes))

    def numerics(self) -> str:
        """Seven bits of q and k."""
        return "attention-int8"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        work = _Work(model, self.min_keys, dict(self.sizes))
        refusals: list[Refusal] = []
        count = 0
        for found in list(decomposed_attentions(model.graph)):
            if not isinstance(found, DecomposedAttention):
                refusals.append(Refusal(str(found[0].name), found[1]))
            elif (why := work.reason(found)) is not None:
                refusals.append(Refusal(str(found.softmax.name), why))
            else:
                work.replace(found, smooth_k=self.smooth_k)
                count += 1
        if count:
            attach_functions(model)
        return Result(model, bool(count), tuple(refusals), {"attentions with INT8 scores": count} if count else {})


class _Work:
    """One run over one graph."""

    def __init__(self, model: ir.Model, min_keys: int, sizes: Mapping[str, int]) -> None:
        self.graph, self.min_keys = model.graph, min_keys
        self.types = element_types(model.graph).of
        self.at = "the profile's greatest" if sizes else "the default"
        self.shapes = sized_shapes(model.graph, {**_defaults(model), **sizes})

    def reason(self, a: DecomposedAttention) -> str | None:
        """Why this attention stays as it is."""
        read = [self.types.get(v) for v in (a.q, a.k, a.v)]
        if read[0] not in _HALF:
            return f"computed in {read[0].name.lower() if read[0] else 'an unknown type'}; the operator takes float16 and bfloat16"
        if any(found is not read[0] for found in read):
            return "queries, keys and values of different types"
        if not SCALES[0] <= a.scale <= SCALES[1]:
            return f"scores times {a.scale:g}; the operator takes {SCALES[0]:g} to {SCALES[1]:g}"
        return a.shared() or self._shape_reason(a)

    def _shape_reason(self, a: DecomposedAttention) -> str | None:
        q, k, v = (self.shapes.get(value, ()) for value in (a.q, a.scores.inputs[1], a.v) if value is not None)
        width, heads, keys = _at(q, 3), _at(q, 1), _at(k, 3)
        if keys is None:
            return "the number of keys is not known: the graph's metadata gives no size for its axes"
        if keys < self.min_keys:
            return f"{keys} keys at {self.at} sizes; min_keys is {self.min_keys}"
        if width is None or width % WIDTHS_OF or width > MAX_WIDTH or (_at(k, 2), _at(v, 3)) != (width, width):
            said = " and ".join(dict.fromkeys(str(n) for n in (width, _at(k, 2), _at(v, 3))))
            return f"heads of {said} channels; the operator takes multiples of {WIDTHS_OF} up to {MAX_WIDTH}"
        if heads is None or (_at(k, 1), _at(v, 1)) != (heads, heads):
            return f"{heads} heads of queries, {_at(k, 1)} of keys, {_at(v, 1)} of values"
        batches = [_at(s, 0) for s in (q, k, v)]
        if len({n for n in batches if n is not None}) > 1:
            return f"batches of {batches[0]} queries, {batches[1]} keys, {batches[2]} values; the operator takes one batch"
        if a.mask is not None:
            mask = self.shapes.get(a.mask, ())
            if len(mask) != 4 or mask[1:] != (1, 1, keys) or mask[0] not in (1, _at(q, 0)):
                return f"a mask {list(mask) or 'of unknown shape'}; the operator takes [batch, 1, 1, keys] or [1, 1, 1, keys]"
        return None

    def replace(self, a: DecomposedAttention, *, smooth_k: bool) -> None:
        """Put the operator in the place of the attention and of the transposes around it."""
        name = str(a.softmax.name)
        q, v = _turned(a.q), _turned(a.v)
        perm = tuple(a.transpose.attributes["perm"].as_ints())
        k = (a.k, True) if perm == (0, 2, 3, 1) else _turned(a.k)
        if perm not in ((0, 2, 3, 1), (0, 1, 3, 2)):
            k = (inserted(self.graph, a.product, "Transpose", [a.k], f"{name}_keys", perm=[perm[0], perm[1], perm[3], perm[2]]), False)
        after = only_reader(a.product.outputs[0])
        turns_back = after is not None and after.op_type == "Transpose" and tuple(after.attributes["perm"].as_ints()) == _TURN
        last = after if turns_back and after is not None else a.product
        op = QAttention(
            scale=a.scale,
            smooth_k=smooth_k,
            mask=a.mask is not None,
            q_by_token=q[1],
            k_by_token=k[1],
            v_by_token=v[1],
            y_by_token=turns_back,
        )
        made = op.node([q[0], k[0], v[0], *([] if a.mask is None else [a.mask])], name)
        turns = [producer(value, "Transpose") for value in (a.q, a.k, a.v)]
        inner = (after if turns_back else None, a.product, a.softmax, a.masking, a.scores, a.scaling, a.transpose)
        old, new = last.outputs[0], made.outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        self.graph.insert_before(a.product, made)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        remove_unread(self.graph, (*inner, *turns))


def _turned(value: ir.Value) -> tuple[ir.Value, bool]:
    """What a Transpose of heads and tokens made the value of, and that it is by token; else the value itself."""
    node = producer(value, "Transpose")
    if node is None or tuple(node.attributes["perm"].as_ints()) != _TURN:
        return value, False
    assert node.inputs[0] is not None
    return node.inputs[0], True


def _at(shape: Sizes, axis: int) -> int | None:
    return shape[axis] if len(shape) == 4 else None


def _defaults(model: ir.Model) -> dict[str, int]:
    """Sizes of the graph's named axes, as the export wrote them."""
    about = json.loads(model.metadata_props.get("vditc", "{}"))
    return {name: Axis.from_json(axis).default for name, axis in about.get("axes", {}).items()}
