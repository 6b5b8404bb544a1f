"""Whether a target's graph goes to the plugin library, with which library, and why: recorded in the manifest."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from vditc.errors import InputError, VditcError
from vditc.files import sha256
from vditc.plugins.build import FACTS, LIBRARY, Wanted, build, library_path
from vditc.plugins.catalogue import plugin_nodes
from vditc.plugins.plugin_op import DOMAIN, VERSION
from vditc.progress import Progress
from vditc.recipe import Recipe
from vditc.target import Target

Mode = Literal["auto", "on", "off"]
MODES: tuple[Mode, ...] = ("auto", "on", "off")
JETSON = ("87", "110")
FEW_BITS = 4  # of weights beside integer activations, which the library takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginChoice:
    """`library`: None where layers stay Q/DQ. `reason` says why, in words. `lacking`: there are layers for a library that is not there."""

    mode: Mode
    reason: str
    lacking: bool = False
    library: Path | None = None
    sha256: str | None = None


def choose_plugins(mode: str, target: Target, recipe: Recipe, progress: Progress) -> PluginChoice:
    """What `--plugins` means for a target.

    auto: plugins where the recipe has layers for them and a library for the target's GPUs is there; nothing is compiled for it.
    on: a library that is not there is built, and what stands in the way is an error. off: Q/DQ. InputError, or VditcError of the build.
    """
    if mode not in MODES:
        raise InputError(found=mode, wanted=" or ".join(MODES), where="--plugins", fix="choose one of these")
    chosen: Mode = "auto" if mode == "auto" else "on" if mode == "on" else "off"
    if chosen == "off":
        return PluginChoice(mode=chosen, reason="--plugins off")
    if why_not := _unfit(target, recipe):
        if chosen == "on" and target.backend != "onnxruntime":
            raise InputError(found=why_not, wanted="layers for the plugin library", where="--plugins on", fix="leave --plugins out")
        return PluginChoice(mode=chosen, reason=why_not)
    try:
        path = find_library(target)
    except InputError as error:
        if chosen == "auto":
            fix = "weights stay in INT4 Q/DQ; vditc plugins build makes it"
            reason = f"no plugin library for {target.platform} ({error.where}): {error.found}; {fix}"
            return PluginChoice(mode=chosen, reason=reason, lacking=True)
        progress.note(f"building the plugin library for {target.platform}: {error.found} at {error.where}")
        machine, _, cuda = target.platform.partition("-cuda")
        build(Wanted.of(machine, cuda=int(cuda or 13)), progress=progress)
        path = find_library(target)
    return PluginChoice(mode=chosen, reason="layers with weights of 4 or 3 bits beside codes", library=path, sha256=sha256(path))


def _unfit(target: Target, recipe: Recipe) -> str:
    if target.backend == "onnxruntime":
        return "ONNX Runtime runs the portable graph"
    schemes = [rule.scheme for rule in recipe.rules if rule.scheme is not None]
    if not any(
        s.weight.qtype.integer and s.weight.qtype.bits <= FEW_BITS and s.activation is not None and s.activation.qtype.integer
        for s in schemes
    ):
        return f"recipe {recipe.name} has no weights of {FEW_BITS} bits or fewer beside integer activations"
    return ""


def find_library(target: Target, said: Path | None = None) -> Path:
    """The library for a target: the file `said`, in the folder `said`, or where `vditc plugins build` puts it (VDITC_PLUGINS, the cache).

    InputError when there is none, or when it says beside itself that it has no code for one of the target's GPUs.
    """
    path = said if said is not None and not said.is_dir() else library_path(target.platform, said)
    if not path.is_file():
        raise InputError(found="no file", wanted=LIBRARY, where=str(path), fix="check the path, or build it: vditc plugins build")
    facts = path.with_name(FACTS)
    if facts.is_file():
        try:
            has = [str(a) for a in json.loads(facts.read_text())["architectures"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                found=f"unreadable ({error!r})", wanted="what is said of the library", where=str(facts), fix="build it again"
            ) from error
        if lacking := [arch for arch in target.arch if not runs_on(arch, has)]:
            raise InputError(
                found=f"code for {', '.join(has)}",
                wanted=f"code for {', '.join(lacking)} of target {target.name}",
                where=str(path),
                fix="build it with these: vditc plugins build --arch",
            )
    return path


def runs_on(arch: str, has: list[str]) -> bool:
    """Machine code of x.y runs on x.z, z not less than y, but not from a desktop's GPU on Jetson's; with an a on x.y alone.

    CUDA C++ Programming Guide, Binary Compatibility.
    """
    number = arch.removeprefix("sm_")
    family = [] if number in JETSON else [one.removesuffix("f") for one in has if not one.endswith("a")]
    return number in has or f"{number}a" in has or any(one[:-1] == number[:-1] and one[-1] <= number[-1] for one in family)


def plugin_operators(lowered: Path) -> dict[str, int]:
    """Operator of the plugin library -> nodes of a graph."""
    return dict(sorted(Counter(f"{DOMAIN}.{node.op_type}" for node in plugin_nodes(ir.load(lowered))).items()))


def library_in_bundle(target: Target) -> str:
    """Where a bundle has the library for a target."""
    return f"plugins/{target.platform}/{LIBRARY}"


def recorded(choice: PluginChoice, target: Target, operators: dict[str, int]) -> dict[str, Any]:
    """What the manifest says: the library (a file of the bundle) and its operators, or the reason why there is none.

    VditcError when plugins were asked for (on) and lowering handed no layer over.
    """
    said: dict[str, Any] = {"mode": choice.mode, "reason": choice.reason}
    if choice.library is None:
        return said
    if not operators and choice.mode == "auto":
        return {**said, "reason": "no layer of this model went to the plugin library; see why with `vditc lower --plugins --explain`"}
    if not operators:
        raise VditcError(
            found="no operator of the plugin library in the lowered graph",
            wanted="some: the recipe has layers for it",
            where=f"target {target.name}",
            fix="see why with `vditc lower --plugins --explain`, or compile with --plugins off",
        )
    return {
        **said,
        "library": library_in_bundle(target),
        "sha256": choice.sha256,
        "operators": operators,
        "version": VERSION,
        "namespace": DOMAIN,
    }
