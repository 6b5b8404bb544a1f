"""The parts of a pipeline beside its transformer: what of them goes into a bundle, their stages, and how a bundle opens them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vditc.build_memory import gigabytes
from vditc.build_options import BuildOptions
from vditc.checkpoint import read_json
from vditc.conditioner import Conditioner, conditioner_for, known_pipelines
from vditc.errors import InputError
from vditc.export.parts.encode import BATCH, open_torch_part
from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import Part, open_part
from vditc.export.parts.stage import STORED, export_part
from vditc.export.parts.tokenizers import save_tokenizer
from vditc.export.parts.vae import VaeDecoder
from vditc.files import data_digest
from vditc.part_graph import PartGraph
from vditc.pipeline.device_files import Part as DevicePart
from vditc.pipeline.device_files import write_device_files
from vditc.pipeline.engine_folder import drop_others
from vditc.pipeline.part_lowering import clip_profile, lower_part, lowered_name, part_memory, part_profile, part_target
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.prompt_cleaning import installed_steps
from vditc.runtimes.backend import BUILT, TO_BUILD
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.parts.prompt_tokens import PromptTokens
from vditc.runtimes.parts.text_encoder import TextEncoder
from vditc.runtimes.registry import backend
from vditc.runtimes.trt_runner import PLAN
from vditc.target import Target
from vditc.workspace import Workspace

CHOICES = ("all", "transformer")
FPS = 16  # of a pipeline that says nothing


@dataclasses.dataclass(frozen=True)
class PartChoice:
    """What is asked for: `parts`, one of CHOICES; how the text encoder's matrices are stored; whether videos are decoded in tiles."""

    parts: str = "all"
    text_encoder: str = "model"
    tiled: bool = False

    def check(self) -> None:
        """InputError for a word that nobody knows."""
        for option, value, known in (("--parts", self.parts, CHOICES), ("--text-encoder-dtype", self.text_encoder, STORED)):
            if value not in known:
                raise InputError(found=value, wanted=" or ".join(known), where=option, fix="choose one of these")


@dataclasses.dataclass(frozen=True)
class PipelineParts:
    """The parts of a model directory that vditc knows. `notes`: which it does not, and why.

    With `parts = "transformer"` none goes into the bundle; prompts are still encoded for calibration.
    """

    model_dir: Path
    choice: PartChoice
    conditioner: Conditioner | None
    encoders: Mapping[str, Part]  # folder -> text encoder
    vae: VaeDecoder | None
    notes: tuple[str, ...]

    @classmethod
    def open(cls, model_dir: Path, config: Mapping[str, Any], choice: PartChoice) -> PipelineParts:
        """`config`: of the transformer. What cannot be exported is left out, with a note; InputError for damaged files."""
        choice.check()
        notes: list[str] = []
        encoders: dict[str, Part] = {}
        conditioner = vae = None
        if _kind(model_dir / "text_encoder") not in (None, "WordEmbedding"):
            if (conditioner := conditioner_for(model_dir, config)) is None:
                notes.append(
                    f"prompts are not encoded: pipelines that vditc encodes for are {', '.join(known_pipelines())}; "
                    "run the bundle with --conditioning"
                )
            else:
                text = [dataclasses.replace(t, clean=installed_steps(t.clean)) for t in conditioner.text]
                if text != list(conditioner.text):
                    notes.append("prompts are cleaned without ftfy, which is not installed: diffusers does the same without it")
                conditioner = dataclasses.replace(conditioner, text=tuple(text))
                try:
                    encoders = {t.encoder: part_for(open_part(model_dir, t.encoder)).for_prompts(t) for t in text}
                except InputError as error:
                    conditioner, encoders = None, {}
                    notes.append(f"prompts are not encoded: {error}")
        if choice.parts == "all" and _kind(model_dir / "vae") not in (None, "PixelShuffleCodec"):
            try:
                part = part_for(open_part(model_dir, "vae"))
                assert isinstance(part, VaeDecoder)
                vae = part
            except InputError as error:
                notes.append(f"latents are not decoded: {error}")
        if choice.tiled and (vae is None or vae.plan().tiles is None):
            raise InputError(
                found="--vae-tiles", wanted="a VAE that decodes in tiles", where=str(model_dir / "vae"), fix="leave the option out"
            )
        return cls(model_dir, choice, conditioner, encoders, vae, tuple(notes))

    @property
    def digest(self) -> str:
        """Of all that these parts' files depend on."""
        if self.choice.parts == "transformer":
            return data_digest(dataclasses.asdict(self.choice))
        return data_digest(
            {
                "choice": dataclasses.asdict(self.choice),
                "conditioner": None if self.conditioner is None else dataclasses.asdict(self.conditioner),
                "parts": {name: part.digest for name, part in self._parts().items()},
            }
        )

    @property
    def fps(self) -> int:
        """Frames a second of a clip, for players."""
        return FPS if self.conditioner is None else self.conditioner.fps

    def _parts(self) -> dict[str, Part]:
        return {**self.encoders, **({} if self.vae is None else {"vae": self.vae})}

    def _for_profile(self, profile: Profile) -> PipelineParts:
        """The same, with decoder graphs for the clip lengths of a profile."""
        if self.vae is None:
            return self
        own = profile.axes["frames"]
        return dataclasses.replace(self, vae=type(self.vae)(self.vae.source, range(own.min, own.max + 1)))

    def text_encoder(self, work: Path) -> TextEncoder | None:
        """The pipeline's own text encoder in PyTorch; tokenizers are converted into `work`."""
        if self.conditioner is None:
            return None
        conditioner = self.conditioner

        def tokens(folder: str) -> PromptTokens:
            text = next(t for t in conditioner.text if t.tokenizer == folder)
            save_tokenizer(self.model_dir, folder, text.tokens, work / folder)
            return PromptTokens(work / folder)

        return TextEncoder(conditioner, tokens, lambda name: open_torch_part(self.encoders[name]), batch=BATCH)

    def compile(
        self,
        space: Workspace,
        targets: Sequence[tuple[Target, BuildOptions]],
        profile: Profile,
        size: Sequence[int],
        progress: Progress,
    ) -> dict[str, Any]:
        """Run every part's stages into `components/` of the bundle; returns what the manifest says of them.

        `size`: latent frames, height and width of a clip, for what the model has fixed and the profile does not name.
        """
        if self.choice.parts == "transformer":
            return {}
        whole = clip_profile(profile, size)
        return self._for_profile(whole)._compile(space, targets, whole, progress)

    def _compile(
        self, space: Workspace, targets: Sequence[tuple[Target, BuildOptions]], profile: Profile, progress: Progress
    ) -> dict[str, Any]:
        root = space.path / "components"
        if self.conditioner is not None:
            self.conditioner.save(root)
            for text in self.conditioner.text:
                save_tokenizer(self.model_dir, text.tokenizer, text.tokens, root / text.tokenizer)
        facts: dict[str, Any] = {}
        for name, part in self._parts().items():
            facts[name] = self._export(name, part, space, progress)
            facts[name]["targets"] = {
                target.name: self._target(name, part, target, options.of_parts, space, profile, progress) for target, options in targets
            }
        return facts

    def _export(self, name: str, part: Part, space: Workspace, progress: Progress) -> dict[str, Any]:
        folder = space.path / "components" / name
        stored = self.choice.text_encoder if part.quantizable else "model"

        def run() -> dict[str, Any]:
            facts = export_part(part, folder, progress, stored)
            if isinstance(part, VaeDecoder):
                part.plan().save(folder)
            return dataclasses.asdict(facts)

        facts = space.stage(f"export {name}", run, tuple(f"components/{name}/{end}" for end in ("*.onnx", "*.onnx.data", "*.json")))
        tiled = {"tiled": self.choice.tiled} if isinstance(part, VaeDecoder) else {}
        known = {"class": part.model_class, "digest": part.digest, "weights": part.weight_count, "stored": stored}
        return {**known, **tiled, **facts}

    def _target(
        self, name: str, part: Part, target: Target, options: BuildOptions, space: Workspace, profile: Profile, progress: Progress
    ) -> dict[str, Any]:
        """Lower and build every graph of a part for one target; ONNX Runtime runs the portable ones."""
        chosen = part_target(target, text=part.quantizable)
        if backend(target.backend).name == "onnxruntime":
            return {"compute": chosen.compute, "graphs": {g.name: {"status": "portable"} for g in part.graphs()}}
        eight_bits = self.choice.text_encoder != "model" and part.quantizable
        memory = part_memory(part.weight_count, chosen.compute, eight_bits=eight_bits)
        weights, builder = map(gigabytes, (memory["weights"], memory["builder"]))
        progress.note(f"{name} for {target.name}: about {weights} of weights; building takes about {builder}")
        graphs = {g.name: self._graph(name, part, g, chosen, target.name, options, space, profile, progress) for g in part.graphs()}
        return {"compute": chosen.compute, "memory": memory, "graphs": graphs}

    def _graph(
        self,
        name: str,
        part: Part,
        graph: PartGraph,
        target: Target,
        label: str,
        options: BuildOptions,
        space: Workspace,
        profile: Profile,
        progress: Progress,
    ) -> dict[str, Any]:
        folder = space.path / "components" / name
        lowered = lowered_name(graph.name, label)

        def run_lower() -> dict[str, Any]:
            found = lower_part(folder / graph.file, folder / lowered, target, label, compare=True, progress=progress)
            return {"nodes": found.nodes, "error": found.error}

        outputs = (f"components/{name}/{lowered}", f"components/{name}/{lowered}.data")
        facts = space.stage(f"lower {name}/{graph.name} {label}", run_lower, outputs)
        engine = f"components/{name}/engines/{label}/{graph.name}"

        def run_build() -> dict[str, Any]:
            tiles = part.plan().tiles if isinstance(part, VaeDecoder) and self.choice.tiled else None
            ranges, inputs = part_profile(folder / graph.file, profile, tiles), input_specs(folder / lowered)
            built = backend(target.backend).build(
                lowered=folder / lowered,
                target=target,
                profile=ranges,
                inputs=inputs,
                out=space.path / engine,
                work=space.scratch / label / name / graph.name,
                progress=progress,
                options=options,
            )
            if built.status == TO_BUILD:
                built_of = [DevicePart("model", folder / lowered, inputs)]
                write_device_files(root=folder, folder=space.path / engine, parts=built_of, target=target, profile=ranges, options=options)
            drop_others(space.path / engine, (PLAN,) if built.status == BUILT else (), cut=False)
            return built.to_json()

        built = space.stage(f"build {name}/{graph.name} {label}", run_build, (f"{engine}/*",), key=options.to_json())
        known = {k: v for k, v in built.items() if k not in ("seconds", "peak_rss_bytes")}
        return {**facts, "lowered": lowered, "engine": known, "build": options.to_json()}


def _kind(folder: Path) -> str | None:
    """The class of a component folder; None without one."""
    if not (folder / "config.json").exists():
        return None
    config = read_json(folder / "config.json")
    return str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))
