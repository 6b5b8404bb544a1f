"""The passes of each backend, in order, and how a user names one."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

from vditc.errors import InputError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import PASSES, Pass
from vditc.graph_passes.dequantize_layers import DequantizeLayers
from vditc.graph_passes.eliminate_dead_nodes import EliminateDeadNodes
from vditc.graph_passes.flatten_attention_outputs import FlattenAttentionOutputs
from vditc.graph_passes.fold_channel_balance import FoldChannelBalance
from vditc.graph_passes.fold_constants import FoldConstants
from vditc.graph_passes.fold_rotation import FoldRotation
from vditc.graph_passes.fold_temporal_scales import FoldTemporalScales
from vditc.graph_passes.fold_token_aware import FoldTokenAware
from vditc.graph_passes.form_attention import FormAttention
from vditc.graph_passes.form_rms_normalization import FormRmsNormalization
from vditc.graph_passes.fuse_quantize_token import FuseQuantizeToken
from vditc.graph_passes.join_norms_to_quantization import JoinNormsToQuantization
from vditc.graph_passes.keep_attention_in_range import KeepAttentionInRange
from vditc.graph_passes.legalize_for_target import Blocks, LegalizeForTarget
from vditc.graph_passes.lower_subbyte_linear import LowerSubbyteLinear
from vditc.graph_passes.precompute_time_path import PrecomputeTimePath
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.raise_opset import LATER, RaiseOpset
from vditc.graph_passes.share_quantization import ShareQuantization
from vditc.graph_passes.spec import IR_VERSIONS
from vditc.graph_passes.strip_functions import StripFunctions
from vditc.target import Target

FOUR_BIT_PRODUCTS = ("sm_80", "sm_86", "sm_87", "sm_89")  # mma.sync of s4: later GPUs compute it by two products of s8 and ALU instructions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Handed:
    """What goes to the plugin library."""

    layers: bool = False  # linear ones with weights of few bits or in groups
    attention: QuantizeAttention | None = None


def onnxruntime(target: Target, library: Handed) -> tuple[Pass, ...]:
    """ONNX Runtime runs the canonical graph; only what is superfluous goes. It runs the bodies of plugin operators."""
    return (
        FoldConstants(),
        ShareQuantization(),
        FoldChannelBalance(),
        FoldRotation(),
        FoldTemporalScales(),
        PrecomputeTimePath(),  # after the folds: what they put on modulation vectors is computed beforehand as well
        ConvertComputeType(to=target.compute),
        # In front of the next, which widens what is left.
        *((library.attention,) if library.attention is not None else ()),
        *((KeepAttentionInRange(),) if target.attention == "bf16" else ()),
        FoldTokenAware(rank_term=library.layers),
        *_handed_over(library, target),
        *_forms(target),
        EliminateDeadNodes(),
    )


def tensorrt_rtx(target: Target, library: Handed) -> tuple[Pass, ...]:
    """TensorRT-RTX: strongly typed, in forms that it fuses."""
    return (
        FoldConstants(),
        ShareQuantization(),
        FoldChannelBalance(),
        FoldRotation(),
        FoldTemporalScales(),
        # After the folds, as above. A row is rounded once more than the data it meets.
        PrecomputeTimePath(store="fp16" if target.compute == "fp16" else "fp32"),
        ConvertComputeType(to=target.compute),
        # In front of the next, which widens what is left, and of what hides shapes.
        *((library.attention,) if library.attention is not None else ()),
        *((KeepAttentionInRange(),) if target.attention == "bf16" else ()),
        FoldTokenAware(rank_term=library.layers),
        *_handed_over(library, target),
        *_forms(target),
        FlattenAttentionOutputs(),
        JoinNormsToQuantization(),
        # After the conversion: it repeats scales in the type that they are then used in.
        LegalizeForTarget(blocks=Blocks.of(target.int4_blocks)),
        EliminateDeadNodes(),
    )


def _forms(target: Target) -> tuple[Pass, ...]:
    """Operators that opset 23 has for what the export spells out; after the conversion, which decides in what type each is."""
    return (RaiseOpset(), FormAttention(), FormRmsNormalization()) if target.opset == LATER else ()


def tensorrt(target: Target, library: Handed) -> tuple[Pass, ...]:
    """TensorRT 10.3 and later read and fuse the same forms."""
    return tensorrt_rtx(target, library)


def _handed_over(library: Handed, target: Target) -> tuple[Pass, ...]:
    """Linear layers to the plugin library; the bodies of its operators go where the target must not see them."""
    # Groups keep their scales on every target: numbers change only where somebody says so, lower-subbyte-linear{requantize=true}.
    lowered = LowerSubbyteLinear(packed=bool(target.arch) and all(gpu in FOUR_BIT_PRODUCTS for gpu in target.arch))
    layers = (FuseQuantizeToken(), lowered) if library.layers else ()
    return (*layers, *(() if target.functions or library == Handed() else (StripFunctions(),)))


ON_REQUEST: tuple[type[Pass], ...] = (DequantizeLayers,)  # in no list: `--passes` names it, or a fallback
PIPELINES = {"onnxruntime": onnxruntime, "tensorrt_rtx": tensorrt_rtx, "tensorrt": tensorrt}


def pipeline(
    target: Target, *, keep_time_path: bool = False, plugins: bool = False, attention: QuantizeAttention | None = None
) -> tuple[Pass, ...]:
    """The passes for `target`, those that replace the time path left out if it is to stay.

    To the plugin library go with `plugins` linear layers, with `attention` what that takes.

    InputError when the target does not read the opset that it wants its graphs in, or nothing writes that.
    """
    least, greatest = target.opsets
    if not least <= target.opset <= greatest:
        raise InputError(
            found=f"opsets {least} to {greatest}",
            wanted=f"opset {target.opset} among them",
            where=f"target {target.name}",
            fix="correct the target's file: opset is what lowering writes",
        )
    if target.opset not in IR_VERSIONS:
        raise InputError(
            found=f"opset = {target.opset}",
            wanted=f"one of {', '.join(map(str, IR_VERSIONS))}",
            where=f"target {target.name}",
            fix="correct the target's file",
        )
    passes = PIPELINES[target.backend](target, Handed(layers=plugins, attention=attention))
    return tuple(p for p in passes if not (keep_time_path and isinstance(p, PrecomputeTimePath)))


def parse_pass(text: str) -> Pass:
    """`fold-constants{size_limit=1024}` -> FoldConstants(size_limit=1024); InputError when it cannot be read."""
    name, brace, rest = text.strip().partition("{")
    if (made := PASSES.get(name.strip())) is None:
        raise _bad("--passes", f"pass {name.strip()!r}", f"one of {', '.join(sorted(PASSES))}", "correct the name; see `vditc passes`")
    where = f"--passes {made.name}"
    if brace and not rest.endswith("}"):
        raise _bad(where, repr(text.strip()), "a closing brace", "write name{option=value}")
    types, options = get_type_hints(made), dict[str, object]()
    known = {f.name: types[f.name] for f in dataclasses.fields(made)}
    for item in filter(None, rest.removesuffix("}").split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise _bad(where, f"option {key!r}", f"one of {', '.join(known)}" if known else "no option", "correct the option")
        if not equals or key in options:
            raise _bad(where, repr(item), f"{key}=value, once", "correct the option")
        options[key] = _value(known[key], key, value, where)
    return made(**options)


def _value(kind: type, key: str, text: str, where: str) -> object:
    """An option's value: a bool, or of a type that is made from its text, as int, float and str are."""
    if kind is bool:
        if text not in ("true", "false"):
            raise _bad(where, f"{key}={text}", f"{key}=true or {key}=false", "correct the value")
        return text == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise _bad(where, f"{key}={text}", f"{key} of type {kind.__name__}", "correct the value") from error


def _bad(where: str, found: str, wanted: str, fix: str) -> InputError:
    return InputError(found=found, wanted=wanted, where=where, fix=fix)
