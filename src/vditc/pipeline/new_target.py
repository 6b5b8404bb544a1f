"""A target that a bundle was not compiled for: its graph is lowered from the bundle's own model.onnx, with the settings of the others.

So is one that the bundle has, when layers of it go down the ladder of `vditc.pipeline.fallback`.

The model directory is not needed. What `compile` compares on a clip of the model, the lowered graph with the portable one, is compared
here pass by pass on made-up inputs, as `vditc lower --verify` does.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.bundle_update import WORK
from vditc.calibration import Calibration
from vditc.errors import InputError
from vditc.files import sha256
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.stage import LowerFacts, lower
from vditc.memory import BYTES
from vditc.pipeline.bundle_parts import Part, update, with_target
from vditc.pipeline.fallback import Ladder, check_refusals
from vditc.pipeline.manifest_facts import graph_inputs
from vditc.pipeline.plugin_choice import PluginChoice, attention_left, choose_plugins, library_in_bundle, plugin_operators, recorded
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.recipe import Gate, Recipe, Rule
from vditc.runtimes.attention_keys import float16_keys
from vditc.runtimes.backend import TO_BUILD
from vditc.target import Target

TIME_PATH = "precompute-time-path"  # the pass that a bundle of --keep-time-path is lowered without


@dataclasses.dataclass(frozen=True)
class NewTarget:
    """A target whose graph is to be lowered; its recipe has been checked. `ladder`: where its layers stand, None without a fallback."""

    part: Part
    target: Target
    choice: PluginChoice
    attention: QuantizeAttention | None
    keep_time_path: bool
    ladder: Ladder | None = None

    @classmethod
    def check(cls, part: Part, target: Target, progress: Progress, *, fallback: bool = False) -> NewTarget:
        """InputError where the target does not run what the bundle was calibrated for; `--plugins on` may build the plugin library.

        With a `fallback` layers that it does not run begin further down, and those that are down already stay there.
        """
        calibration = Calibration.load(part.root / "calibration.safetensors")
        others = list(part.manifest.targets.values())
        modes = [other["plugins"]["mode"] for other in others if "mode" in other.get("plugins", {})]
        recipe = _recipe(calibration, part)
        choice = choose_plugins(modes[0] if modes else "auto", [target], recipe, progress, fallback=fallback)[target.name]
        library = library_in_bundle(target)
        if choice.library is not None and (there := part.manifest.files.get(library)) and there.sha256 != choice.sha256:
            raise InputError(
                found=f"another plugin library than the bundle has (sha256 {choice.sha256 or ''}, {there.sha256} there)",
                wanted="one library for all engines of a platform",
                where=f"target {target.name}, {choice.library}",
                fix=f"set VDITC_PLUGINS to where {library} of the bundle comes from, or compile again",
            )
        asked = _attention(calibration)
        largest = Profile.from_json(part.manifest.profile).largest
        passes = [one["name"] for other in others for one in other["graph"]["passes"]]
        keep = bool(passes) and not any(name.startswith(TIME_PATH) for name in passes)
        taken = part.manifest.targets.get(target.name, {}).get("fallback", ())
        ladder = Ladder.recorded_in(target, calibration, taken, plugins=choice.layers) if fallback else None
        return cls(part, target, choice, QuantizeAttention.asked(asked, largest) if choice.scores else None, keep, ladder)

    def lower(self, parts: list[Part], dropped: set[str], *, verify: bool, progress: Progress) -> None:
        """Lower, and record the target in the part's manifest, which lists the files `dropped` no more: of an engine of the graph before.

        DialectError, or PrecisionError where a pass changed the numbers.
        """
        part, name = self.part, f"lowered/{self.target.name}.onnx"
        if self.choice.lacking:
            progress.note(f"{self.target.name} without plugins: {self.choice.reason}")
        largest, out = Profile.from_json(part.manifest.profile).largest, part.root / name
        facts, error = self._lower(self.target, out, verify, progress)
        chosen = self.target.for_keys(float16_keys(out, largest))
        if chosen != self.target:
            facts, error = self._lower(chosen, out, verify, progress)
        chosen.check_attention(float16_keys(out, largest), str(out))
        operators = plugin_operators(out)
        graph = {
            "passes": [{k: v for k, v in dataclasses.asdict(p).items() if k != "seconds"} for p in facts.passes],
            "nodes": facts.nodes_after,
            "error": None if error is None else round(error, 6),
            "attention": chosen.attention or chosen.compute,
            "operators": operators,
        }
        plugins = recorded(self.choice, self.target, operators, attention_left(facts.passes))
        staged = {f"lowered/{path.name}": path for path in facts.files}
        if "library" in plugins and plugins["library"] not in part.manifest.files:
            staged[plugins["library"]] = self._copied()
        about = {
            "backend": chosen.backend,
            "built_in": chosen.name if chosen.built_in else None,
            "arch": list(chosen.arch),
            "runtime": chosen.runtime,
            "compute": chosen.compute,
            "attention": graph["attention"],
            "lowered": name,
            "inputs": graph_inputs(out),
            **self._memory(),
            "plugins": plugins,
            "graph": graph,
            "build": {},
            "engine": {"status": TO_BUILD, "backend": chosen.backend},
            **({"fallback": self.ladder.recorded} if self.ladder is not None and self.ladder.taken else {}),
        }
        update(parts, part, with_target(part.manifest, self.target.name, about), staged, dropped - set(staged))

    def _lower(self, target: Target, out: Path, verify: bool, progress: Progress) -> tuple[LowerFacts, float | None]:
        """Also the greatest relative error of a pass, None where nothing was verified."""
        model, verifier = self.part.root / "model.onnx", None
        rungs = () if self.ladder is None else self.ladder.passes()
        if verify:
            from vditc.graph_passes.claims import CheckClaims
            from vditc.pipeline.verify_passes import VerifyPasses  # here, so that nothing else needs onnxruntime

            verifier = VerifyPasses(model, taken=len(rungs))
        facts = lower(
            model=model,
            target=target,
            out=out,
            keep_time_path=self.keep_time_path,
            plugins=self.choice.layers,
            attention=self.attention,
            first=rungs,
            observers=() if verifier is None else (CheckClaims(), verifier),
            progress=progress,
        )
        check_refusals(facts.passes[: len(rungs)], target)
        return facts, None if verifier is None else max((v.error for v in verifier.verdicts if v is not None), default=0.0)

    def _copied(self) -> Path:
        """The plugin library, beside its place."""
        assert self.choice.library is not None
        copy = self.part.root / WORK / f"{self.target.name}.library"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(self.choice.library, copy)
        if sha256(copy) != self.choice.sha256:
            raise InputError(
                found="another library than a moment ago", wanted="one that stays", where=str(self.choice.library), fix="build again"
            )
        return copy

    def _memory(self) -> Mapping[str, Any]:
        """The estimate of a target that computes in as many bytes, which is that of this one; nothing where there is none."""
        for other in self.part.manifest.targets.values():
            built = "onnxruntime" not in (other["backend"], self.target.backend) or other["backend"] == self.target.backend
            if built and "memory" in other and BYTES[other["compute"]] == BYTES[self.target.compute]:
                return {"memory": other["memory"]}
        return {}


def _recipe(calibration: Calibration, part: Part) -> Recipe:
    """What the bundle was calibrated with, as far as a target is asked about it: a rule for every scheme that its layers have."""
    schemes = dict.fromkeys(layer.scheme for layer in calibration.layers.values())
    return Recipe(
        name=str(part.manifest.recipe["name"]),
        description=str(part.manifest.recipe["description"]),
        method=str(part.manifest.recipe["method"]),
        rules=tuple(Rule(match=("*",), scheme=scheme) for scheme in schemes),
        gate=Gate(),
        calibration_prompts=1,
        calibration_seed=0,
        settings={},
        digest=str(part.manifest.recipe["digest"]),
        attention=_attention(calibration),
    )


def _attention(calibration: Calibration) -> Any:
    """One scheme for the whole model; None where attention is not quantized."""
    return next((found.scheme for found in calibration.attention.values()), None)
