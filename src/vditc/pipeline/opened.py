"""A model directory that a command was given, opened: the model, its adapter and small parts, and how it is sampled."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vditc.adapter import ModelAdapter
from vditc.axis import CLIP
from vditc.conditioning import Conditioning
from vditc.export.adapters.registry import adapter_for
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.components import Components, conditioning_for, load_conditioning, sampling_of
from vditc.pipeline.parts import PartChoice, PipelineParts
from vditc.pipeline.schedules import Solver
from vditc.runtimes.schedulers.walk import Walk
from vditc.sampled_model import SampledModel
from vditc.schedule import Schedule

ALL_PARTS, TRANSFORMER = PartChoice(), PartChoice(parts="transformer")


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """What every command that samples the model knows of it."""

    source: ModelDir  # with the LoRAs fused
    loras: tuple[Lora, ...]
    adapter: ModelAdapter
    parts: Components
    sampling: SamplingDefaults
    exported: PipelineParts

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        part: str | None = None,
        loras: Sequence[str] = (),
        steps: int | None = None,
        guidance_scale: float | None = None,
        size: str = "",
        choice: PartChoice = TRANSFORMER,
    ) -> OpenedModel:
        """`loras`: FILE or FILE:SCALE. `choice`: what else of the pipeline is wanted.

        InputError for a model that vditc does not know or sample, or a clip that it does not take.
        """
        fused = tuple(Lora.parse(text) for text in loras)
        source = fuse(ModelDir.open(folder, part), fused)
        adapter = adapter_for(source)
        adapter.check(source)
        adapter.check_sampled()
        sizes = adapter.sizes(source)
        sampling = sampling_of(source, sizes, steps, guidance_scale, size)
        sizes.check({axis: getattr(sampling, axis) for axis in CLIP}, "--size" if size else str(source.path / "sampling.json"))
        if source.sampling is None or size:  # default profiles are around the size that is sampled
            source = dataclasses.replace(source, sampling=sampling)
        exported = PipelineParts.open(folder, source.config, choice)
        return cls(source, fused, adapter, Components.open(folder), sampling, exported)

    @functools.cached_property
    def solver(self) -> Solver:
        """The model's own, or what walks in its place."""
        return Solver.of_model(self.source)

    def walk(self, size: Sequence[int] | None = None) -> Walk:
        """Of the chosen number of steps, for latents of `size` (frames, height, width) or those of sampling.json."""
        return self.solver.walk(self.sampling.steps, size or (self.sampling.frames, self.sampling.height, self.sampling.width))

    def schedule(self) -> Schedule:
        """The table of its noise levels."""
        return self.walk().schedule

    def saved(self, file: Path | None) -> Conditioning | None:
        """Saved conditionings, if any were given; InputError for what the model does not take."""
        return None if file is None else load_conditioning(file, self.adapter.inputs(self.source), self.adapter.sizes(self.source))

    def prompted(self, count: int, seed: int, prompts: tuple[str, ...] = ()) -> Conditioning:
        """`count` clips: the given prompts in turn, or the captions that the model was made for."""
        parts = self.parts
        with tempfile.TemporaryDirectory() as work:
            if parts.words is None:
                parts = dataclasses.replace(parts, words=self.exported.text_encoder(Path(work)))
            return conditioning_for(parts, self.sampling, self.adapter.latent_channels(self.source), count, seed, prompts)

    def sampled(self, conditioning: Conditioning, *, solved: bool = False) -> SampledModel:
        """The model on these clips, to be calibrated; `solved`: sampled by its own solver."""
        walk = self.walk(conditioning.latent_shape[1:])
        return SampledModel(
            source=self.source,
            adapter=self.adapter,
            conditioning=conditioning,
            scheduler=walk.schedule,
            guidance_scale=self.sampling.guidance_scale,
            solver=walk if solved else None,
        )
