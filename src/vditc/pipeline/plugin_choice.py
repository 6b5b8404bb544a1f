"""Whether a target's graph goes to the plugin library, with which library, and why: recorded in the manifest."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from vditc.attention import AttentionScheme
from vditc.errors import InputError, VditcError
from vditc.files import sha256
from vditc.graph_passes.core import PassFacts
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.numerics import Granularity, QType
from vditc.pipeline.plugin_library import build_for, find_library
from vditc.plugins.build import LIBRARY
from vditc.plugins.catalogue import plugin_nodes
from vditc.plugins.plugin_op import DOMAIN, VERSION
from vditc.plugins.qattention.op import QAttention
from vditc.progress import Progress
from vditc.recipe import Recipe
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target

Mode = Literal["auto", "on", "off"]
MODES: tuple[Mode, ...] = ("auto", "on", "off")
FEW_BITS = 4  # of weights beside integer activations, which the library takes
_INT8 = Scheme(  # what the scores of quantized attention are products of
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginChoice:
    """`library`: None where all stays in ONNX's own operators. `reason` says why, in words.

    `layers`, `scores`: whether linear layers, and attention, go to the library. `lacking`: there is work for a library that is not
    there. `attention`: what becomes of a recipe's `[attention]`, in words; "" for a recipe without one.
    """

    mode: Mode
    reason: str
    lacking: bool = False
    library: Path | None = None
    sha256: str | None = None
    layers: bool = False
    scores: bool = False
    attention: str = ""

    @property
    def words(self) -> str:
        """The mode and the library."""
        return f"--plugins {self.mode} " + ("without a library" if self.sha256 is None else f"and the library of sha256 {self.sha256[:12]}")


def choose_plugins(
    mode: str, targets: Sequence[Target], recipe: Recipe, progress: Progress, *, fallback: bool = False
) -> dict[str, PluginChoice]:
    """What `--plugins` means for each target.

    auto: plugins where the recipe has work for them and a library for the target's GPUs is there; nothing is compiled for it.
    on: a library that is not there is built, for the GPUs of all these targets, and what stands in the way is an error.
    off: ONNX's own operators. InputError, also for a recipe that a target does not run without the library, unless there is a `fallback`
    for its layers; VditcError of the build.
    """
    asked = check_mode(mode)
    found = {target.name: _wanted(asked, target, recipe) for target in targets}
    if asked == "on":
        build_for([t for t in targets if found[t.name].layers or found[t.name].scores], progress)
    return {target.name: _with_library(found[target.name], target, recipe, fallback=fallback) for target in targets}


def check_mode(mode: str) -> Mode:
    """InputError for what is no mode."""
    for known in MODES:
        if mode == known:
            return known
    raise InputError(found=mode, wanted=" or ".join(MODES), where="--plugins", fix="choose one of these")


def _wanted(mode: Mode, target: Target, recipe: Recipe) -> PluginChoice:
    """What there is to do for a library, if one is there."""
    schemes = [rule.scheme for rule in recipe.rules if rule.scheme is not None]
    few, groups = any(s.codes and s.weight.qtype.bits <= FEW_BITS for s in schemes), any(s.needs_plugins for s in schemes)
    no_scores = "" if recipe.attention is None else _no_scores(recipe.attention, target)
    scores = recipe.attention is not None and not no_scores
    if mode == "off":
        return _floating(PluginChoice(mode=mode, reason="--plugins off"), recipe)
    if target.backend == "onnxruntime":
        return _floating(PluginChoice(mode=mode, reason="ONNX Runtime runs the portable graph"), recipe)
    if not (few or groups or scores):
        why = f"recipe {recipe.name} has no weights of {FEW_BITS} bits or fewer beside integer activations"
        why += f", and of its attention the library takes nothing: {no_scores}" if no_scores else ""
        if mode == "on":
            raise InputError(found=why, wanted="layers for the plugin library", where="--plugins on", fix="leave --plugins out")
        return PluginChoice(mode=mode, reason=why, attention=f"floating point: {no_scores}" if no_scores else "")
    work = {"layers with weights of 4 or 3 bits beside codes": few, "layers in groups beside codes": groups}
    work["attention with INT8 scores"] = scores
    attention = f"INT8 scores{_unlike(recipe.attention)}" if recipe.attention is not None else ""
    return PluginChoice(
        mode=mode,
        reason=", ".join(what for what, there in work.items() if there),
        layers=few or groups,
        scores=scores,
        attention=f"floating point: {no_scores}" if no_scores else attention,
    )


def _with_library(wanted: PluginChoice, target: Target, recipe: Recipe, *, fallback: bool) -> PluginChoice:
    """The same with its library, or without one and why."""
    if wanted.layers or wanted.scores:
        try:
            path = find_library(target)
            return dataclasses.replace(wanted, library=path, sha256=sha256(path))
        except InputError as error:
            if wanted.mode == "on":
                raise
            fix = "all stays in ONNX's own operators; vditc plugins build makes it"
            reason = f"no plugin library for {target.platform} ({error.where}): {error.found}; {fix}"
            wanted = _floating(PluginChoice(mode=wanted.mode, reason=reason, lacking=True), recipe)
    if not fallback:
        target.check(recipe)
    return wanted


def _floating(choice: PluginChoice, recipe: Recipe) -> PluginChoice:
    """The same, with attention in floating point for the same reason."""
    return choice if recipe.attention is None else dataclasses.replace(choice, attention=f"floating point: {choice.reason}")


def _no_scores(asked: AttentionScheme, target: Target) -> str:
    """Why the library has nothing of what a recipe asks of attention; "" if it has."""
    if QuantizeAttention.asked(asked, {}) is None:
        return f"it has INT8 scores, the recipe asks for {asked}"
    refused = target.refusal(_INT8)
    return "" if refused is None else f"target {target.name} runs no INT8 products: {refused}"


def _unlike(asked: AttentionScheme) -> str:
    """In what the operator is finer than what the recipe asks for."""
    said = [] if asked.block_size == 1 else [f"a scale for every token instead of every {asked.block_size}"]
    said += [] if asked.pv is None else [f"weights times v in 16 bits, since no operator has {asked.pv.value} for them"]
    return "".join(f"; {one}" for one in said)


def plugin_operators(lowered: Path) -> dict[str, int]:
    """Operator of the plugin library -> nodes of a graph."""
    return dict(sorted(Counter(f"{DOMAIN}.{node.op_type}" for node in plugin_nodes(ir.load(lowered))).items()))


def library_in_bundle(target: Target) -> str:
    """Where a bundle has the library for a target."""
    return f"plugins/{target.platform}/{LIBRARY}"


def attention_left(passes: Iterable[PassFacts]) -> dict[str, int]:
    """Why `quantize-attention` left attentions in floating point -> how many."""
    return dict(sorted(Counter(r.reason for p in passes if p.name.startswith(QuantizeAttention.name) for r in p.refusals).items()))


def recorded(choice: PluginChoice, target: Target, operators: Mapping[str, int], left: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest says: the library (a file of the bundle) and its operators, or the reason why there is none.

    `left`: reason -> attentions that stay in floating point. VditcError when plugins were asked for (on) and lowering handed nothing over.
    """
    said: dict[str, Any] = {"mode": choice.mode, "reason": choice.reason}
    if choice.attention:
        scores = operators.get(f"{DOMAIN}.{QAttention.op_type}", 0)
        computed = choice.attention if scores or not choice.scores else "floating point: the library takes no attention of this model"
        said["attention"] = {"computed": computed, "int8_scores": scores, **({"left": dict(left)} if left else {})}
    if choice.library is None:
        return said
    see = "see why with `vditc lower --plugins --explain`"
    if not operators and choice.mode == "auto":
        return {**said, "reason": f"nothing of this model went to the plugin library; {see}"}
    if not operators:
        raise VditcError(
            found="no operator of the plugin library in the lowered graph" + "".join(f"; attention: {why}" for why in left),
            wanted=f"some: the recipe has {choice.reason}",
            where=f"target {target.name}",
            fix=f"{see}, or compile with --plugins off",
        )
    return {
        **said,
        "library": library_in_bundle(target),
        "sha256": choice.sha256,
        "operators": operators,
        "version": VERSION,
        "namespace": DOMAIN,
    }
