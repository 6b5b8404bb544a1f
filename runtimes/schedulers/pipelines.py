"""What a pipeline of diffusers hands to its scheduler beside the number of steps: its own noise levels, and the shift of a clip's size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.runtimes.schedulers.options import Options, plain

Array = npt.NDArray[Any]


def even(steps: int) -> Array:
    """From 1 in equal steps that would end at 0."""
    return np.linspace(1.0, 0.0, steps + 1)[:-1].astype(np.float32)


def even_to_last(steps: int) -> Array:
    """The same, rounded from the other end."""
    return np.linspace(1.0, 1 / steps, steps).astype(np.float32)


def linear_quadratic(steps: int) -> Array:
    """Mochi's: the first half of the steps takes away the first fortieth of the noise, evenly, the rest goes quadratically."""
    threshold, half = 0.025, max(steps // 2, 1)
    rest, gap = max(steps - half, 1), half - threshold * steps
    i = np.arange(half, steps)
    quadratic, linear = gap / (half * rest**2), threshold / half - 2 * gap / rest**2
    levels = [*(np.arange(half) * threshold / half), *(quadratic * i**2 + linear * i + quadratic * half**2)]
    return (1.0 - np.array(levels[:steps])).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Noise levels, if the pipeline has its own, and the greatest mu, if it is cut; or one mu for all sizes."""

    levels: Callable[[int], Array] | None = None
    max_mu: float = math.inf
    mu: float | None = None
    sized: bool = True  # whether mu follows the clip's size


EVEN, LTX = Rule(even), Rule(even_to_last)
RULES: dict[str, Rule] = {  # pipelines that are not listed hand over the number of steps alone
    **dict.fromkeys(
        (
            "HunyuanVideoPipeline",
            "HunyuanVideoImageToVideoPipeline",
            "HunyuanSkyreelsImageToVideoPipeline",
            "HunyuanVideo15Pipeline",
            "HunyuanVideo15ImageToVideoPipeline",
        ),
        Rule(even, sized=False),
    ),
    "HunyuanVideoFramepackPipeline": Rule(even, max_mu=math.log(7.0)),
    **dict.fromkeys(
        (
            "LTXPipeline",
            "LTXImageToVideoPipeline",
            "LTX2Pipeline",
            "LTX2ImageToVideoPipeline",
            "MotifVideoPipeline",
            "MotifVideoImage2VideoPipeline",
        ),
        LTX,
    ),
    "MochiPipeline": Rule(linear_quadratic, sized=False),
    **dict.fromkeys(("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"), Rule(mu=1.0)),
}
NONE = Rule(sized=False)


@dataclasses.dataclass(frozen=True)
class Given:
    """What a scheduler is built for beside its own options and the number of steps."""

    pipeline: str | None = None  # diffusers' class
    size: tuple[int, int, int] | None = None  # of the latents: frames, height, width
    patch: int = 1  # latents of a token

    @property
    def rule(self) -> Rule:
        """Of the pipeline."""
        return RULES.get(self.pipeline or "", NONE)

    def spacing(self, steps: int) -> Array | None:
        """The pipeline's own noise levels before any shift, float32 [steps]; None: the scheduler's."""
        return None if self.rule.levels is None else self.rule.levels(steps)

    def mu(self, options: Options) -> float:
        """The shift of the clip's size: linear in the number of tokens. InputError where the pipeline computes none."""
        if self.rule.mu is not None:
            return self.rule.mu
        if not self.rule.sized or self.size is None:
            lacking = "without a clip size" if self.rule.sized else f"of {self.pipeline or 'no known pipeline'}"
            raise options.bad(
                f"use_dynamic_shifting = true {lacking}",
                f"false, or a clip of a pipeline that computes the shift: {', '.join(n for n, r in RULES.items() if r.sized)}",
                "write the shift of your clips into the configuration and use_dynamic_shifting = false, or give --shift",
            )
        base, most = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (most - base)
        return float(min(math.prod(self.size) / self.patch * slope + (options["base_shift"] - slope * base), self.rule.max_mu))

    def about(self, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """What a walk was made of, plain data: two walks with the same are the same."""
        size = list(self.size) if self.size is not None and config.get("use_dynamic_shifting") else None
        return {
            "class": config["_class_name"],
            "config": plain(config),
            "steps": steps,
            **({"pipeline": self.pipeline} if self.pipeline in RULES else {}),
            **({"size": size, "patch": self.patch} if size else {}),
        }
