"""What `vditc bench` measured of a bundle on one machine: the file that it writes, and that a report reads."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.files import write_text

SCHEMA = 1
FULL = "full precision"  # the contestant that is no backend of the bundle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """One contestant. Seconds of a step: one call of the denoiser, copies to and from the device included.

    `device_bytes`: of the GPU, greatest at the end of a step, without CUDA's own context; `context_bytes`: the part of it that TensorRT
    gives an engine's activations. None: not known, or no GPU.
    """

    name: str
    step_seconds: tuple[float, ...]  # that count
    first_seconds: float  # of the very first step, which loads kernels, or compiles them
    open_seconds: float
    peak_rss_bytes: int
    modules: Mapping[str, float] | None  # module -> seconds of a step, the longest first; None: not measured
    device_bytes: int | None = None
    context_bytes: int | None = None

    @property
    def median(self) -> float:
        """Of the seconds of a step."""
        return statistics.median(self.step_seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile, between the least and the greatest."""
        if len(self.step_seconds) < 2:
            return self.median, self.median
        tenths = statistics.quantiles(self.step_seconds, n=10, method="inclusive")
        return tenths[0], tenths[8]

    @property
    def layers(self) -> dict[str, float] | None:
        """Seconds of a step by module, those of all blocks together: "blocks.*.attn1.to_q"."""
        return None if self.modules is None else kinds(self.modules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """All contestants of one run, the one that ratios are of first. `calls`: of the denoiser for a step of `clips` clips."""

    model: str  # class
    model_digest: str
    recipe: str
    recipe_digest: str
    sizes: Mapping[str, int]
    steps: int
    calls: int
    clips: int
    runs: int
    warmup: int
    profiled: int  # runs that shares of layers are of
    apart: bool  # one after the other, not in turns
    machine: Mapping[str, Any]  # fact -> text or number; "clocks" -> clock -> MHz
    packages: Mapping[str, str]
    taken: str  # ISO 8601, UTC
    of: tuple[Figures, ...]

    def clip_seconds(self, figures: Figures) -> float:
        """Of all denoising steps of a clip, without text encoder, scheduler and VAE: steps x calls x a step's median."""
        return self.steps * self.calls * figures.median

    def clips_per_second(self, figures: Figures) -> float:
        """Where several clips fit into a call, all of them count."""
        return self.clips / self.clip_seconds(figures)

    def ratio(self, figures: Figures) -> float:
        """How many of its steps this one does in the time of one of the first's."""
        return self.of[0].median / figures.median

    @property
    def name(self) -> str:
        """Of the machine and the sizes, for a file: "nvidia-h200-batch2-frames21-height60-width104"."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.device} {' '.join(f'{a}{n}' for a, n in self.sizes.items())}".lower()).strip("-")

    @property
    def device(self) -> str:
        """The GPU, the board or the CPU, for people."""
        return str(next((self.machine[fact] for fact in ("gpu", "board", "cpu") if fact in self.machine), "unknown machine"))

    def to_json(self) -> dict[str, Any]:
        """Plain data with everything that follows from it, so that no reader has to compute."""
        data = dataclasses.asdict(self)
        of = [self._figures(f) for f in self.of]
        return {"schema": SCHEMA, **data, "sizes": dict(self.sizes), "of": of}

    def _figures(self, f: Figures) -> dict[str, Any]:
        low, high = f.spread
        return {
            "name": f.name,
            "step_seconds": f.median,
            "step_seconds_p10": low,
            "step_seconds_p90": high,
            "step_seconds_min": min(f.step_seconds),
            "step_seconds_max": max(f.step_seconds),
            "step_seconds_mean": statistics.fmean(f.step_seconds),
            "steps_per_second": 1 / f.median,
            "ratio": self.ratio(f),
            "clip_seconds": self.clip_seconds(f),
            "clips_per_second": self.clips_per_second(f),
            "first_step_seconds": f.first_seconds,
            "open_seconds": f.open_seconds,
            "peak_rss_bytes": f.peak_rss_bytes,
            "device_bytes": f.device_bytes,
            "context_bytes": f.context_bytes,
            "layers": f.layers,
            "modules": None if f.modules is None else dict(f.modules),
            "all_step_seconds": list(f.step_seconds),
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> Timing:
        """InputError for anything that `to_json` does not write."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = f"schema {data.get('schema')}" if isinstance(data, dict) else type(data).__name__
            raise InputError(found=found, wanted=f"what `vditc bench -o` writes, schema {SCHEMA}", where=where, fix="measure again")
        try:
            of = tuple(_read_figures(row) for row in data["of"])
            if not of or any(not f.step_seconds or min(f.step_seconds) <= 0 for f in of):
                raise ValueError("no seconds of steps")
            named = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name != "of"}
            sizes = {str(axis): int(n) for axis, n in data["sizes"].items()}
            return cls(**{**named, "sizes": sizes, "of": of})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                found=f"no figures ({error!r})", wanted="what `vditc bench -o` writes", where=where, fix="measure again"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Timing:
        """InputError for a file that is not there, or is another one."""
        try:
            return cls.from_json(json.loads(path.read_text()), str(path))
        except OSError as error:
            raise InputError(
                found=error.strerror or str(error), wanted="what `vditc bench -o` writes", where=str(path), fix="check the path"
            ) from error
        except ValueError as error:
            raise InputError(
                found=f"no JSON ({error})", wanted="what `vditc bench -o` writes", where=str(path), fix="measure again"
            ) from error

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")


def kinds(times: Mapping[str, float]) -> dict[str, float]:
    """Module -> seconds, of modules that only differ in the number of their block: "blocks.*.attn1.to_q"."""
    found: dict[str, float] = {}
    for module, seconds in times.items():
        found[kind_of(module)[0]] = found.get(kind_of(module)[0], 0.0) + seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def kind_of(module: str) -> tuple[str, int | None]:
    """ "blocks.12.attn1.to_q" -> ("blocks.*.attn1.to_q", 12), ("proj_out", None) for a module of no block."""
    match = re.search(r"(?:^|\.)(\d+)(?=\.|$)", module)
    return (module, None) if match is None else (module[: match.start(1)] + "*" + module[match.end(1) :], int(match[1]))


def calls_and_clips(guidance_scale: float, batch: int) -> tuple[int, int]:
    """Calls of the denoiser for one step, and clips that they denoise: guidance takes two predictions of each clip."""
    need = 1 if guidance_scale == 1.0 else 2
    return -(-need // batch), max(1, batch // need)


def _read_figures(row: Mapping[str, Any]) -> Figures:
    return Figures(
        name=str(row["name"]),
        step_seconds=tuple(float(s) for s in _sequence(row["all_step_seconds"])),
        first_seconds=float(row["first_step_seconds"]),
        open_seconds=float(row["open_seconds"]),
        peak_rss_bytes=int(row["peak_rss_bytes"]),
        modules=None if row["modules"] is None else {str(m): float(s) for m, s in row["modules"].items()},
        device_bytes=None if row["device_bytes"] is None else int(row["device_bytes"]),
        context_bytes=None if row["context_bytes"] is None else int(row["context_bytes"]),
    )


def _sequence(found: Any) -> Sequence[Any]:
    if not isinstance(found, list):
        raise TypeError(f"{type(found).__name__} instead of a list")
    return found
