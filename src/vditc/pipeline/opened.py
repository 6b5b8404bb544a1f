"""A model directory that a command was given, opened: the model, its adapter and small parts, and how it is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vditc.adapter import ModelAdapter
from vditc.axis import CLIP
from vditc.conditioning import Conditioning
from vditc.export.adapters.registry import adapter_for
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.components import Components, conditioning_for, load_conditioning, sampling_of
from vditc.sampled_model import SampledModel
from vditc.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """What every command that samples the model knows of it."""

    source: ModelDir  # with the LoRAs fused
    loras: tuple[Lora, ...]
    adapter: ModelAdapter
    parts: Components
    sampling: SamplingDefaults

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        part: str | None = None,
        loras: Sequence[str] = (),
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> OpenedModel:
        """`loras`: FILE or FILE:SCALE. InputError for a model that vditc does not know or sample, or a clip that it does not take."""
        fused = tuple(Lora.parse(text) for text in loras)
        source = fuse(ModelDir.open(folder, part), fused)
        adapter = adapter_for(source)
        adapter.check(source)
        adapter.check_sampled()
        sampling = sampling_of(source, steps, guidance_scale)
        adapter.sizes(source).check({axis: getattr(sampling, axis) for axis in CLIP}, str(source.path / "sampling.json"))
        return cls(source, fused, adapter, Components.open(folder), sampling)

    def schedule(self) -> Schedule:
        """Of the chosen number of steps."""
        return self.parts.schedule(self.sampling.steps)

    def saved(self, file: Path | None) -> Conditioning | None:
        """Saved conditionings, if any were given; InputError for what the model does not take."""
        return None if file is None else load_conditioning(file, self.adapter.inputs(self.source), self.adapter.sizes(self.source))

    def prompted(self, count: int, seed: int, prompts: tuple[str, ...] = ()) -> Conditioning:
        """`count` clips: the given prompts in turn, or the captions that the model was made for."""
        return conditioning_for(self.parts, self.sampling, self.adapter.latent_channels(self.source), count, seed, prompts)

    def sampled(self, conditioning: Conditioning) -> SampledModel:
        """The model on these clips."""
        return SampledModel(
            source=self.source,
            adapter=self.adapter,
            conditioning=conditioning,
            scheduler=self.schedule(),
            guidance_scale=self.sampling.guidance_scale,
        )
