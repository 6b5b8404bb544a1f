"""Small bundles whose engines nobody runs, for hosts; `python tests/cpp_bundle.py runtimes/cpp/tests/data` writes that of ctest."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpp_decoder
import ml_dtypes  # gives numpy the name bfloat16
import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.bundle import Manifest, list_files, write_manifest
from vditc.codec import PixelShuffleCodec
from vditc.conditioning import Conditioning
from vditc.pipeline.schedules import Solver
from vditc.sampling import Feeds
from vditc.step_cache import StepCache
from vditc.video_plan import VideoPlan

assert ml_dtypes
LATENTS = (4, 3, 4, 6)  # channels, frames, height, width
STEPS, TOKENS = 6, 5
WAN = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
SPECS = (
    InputSpec("hidden_states", "float32", ("batch", 4, "frames", "height", "width")),
    InputSpec("timestep", "float32", ("batch",), "timestep"),
    InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", 8)),
    InputSpec("guidance", "float32", ("batch",), 6000.0),
)
PROFILE = {"batch": [1, 2, 2], "frames": [1, 3, 5], "height": [2, 4, 8], "width": [2, 6, 8], "text_tokens": [1, 5, 16]}
CACHE = StepCache(
    coefficients={"prompted": (0.4, 0.02), "unprompted": (0.1, 0.3, 0.01)},
    errors={"prompted": 0.01, "unprompted": 0.01},
    low=0.001,
    high=2.0,
    thresholds={"0.3": 0.35, "0.5": 0.8},
)


def listed(specs: tuple[InputSpec, ...]) -> list[Mapping[str, Any]]:
    """As a manifest has them."""
    return [{"name": s.name, "dtype": s.dtype, "dims": list(s.dims), "fill": s.fill} for s in specs]


def save_bundle(
    root: Path,
    config: Mapping[str, Any] = WAN,
    specs: tuple[InputSpec, ...] = SPECS,
    steps: int = STEPS,
    *,
    decoder: VideoPlan | PixelShuffleCodec | None = None,
    tiled: bool = False,
    **sampling: Any,
) -> Path:
    """A bundle of a model that takes `specs` and walks `config`; `sampling` changes what the manifest says of that."""
    solver = Solver.of_config(config, "fixture", pipeline=sampling.pop("pipeline", None))
    shape = (sampling.pop("channels", None) or LATENTS[0], *LATENTS[1:])
    schedule = solver.walk(steps, shape[1:]).schedule
    (root / "lowered").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"portable graph")
    (root / "lowered" / "rtx-ada.onnx").write_bytes(bytes(range(256)) * 37)
    (root / "engines" / "rtx-ada").mkdir(parents=True)
    (root / "engines" / "rtx-ada" / "model.plan").write_bytes(b"plan")
    if decoder is not None:
        vae = root / "components" / "vae"
        vae.mkdir(parents=True)
        decoder.save(vae)
        for graph in decoder.graphs if isinstance(decoder, VideoPlan) else ():
            (vae / graph.file).write_bytes(b"portable graph")
    engine = {"status": "built", "backend": "tensorrt_rtx", "version": "1.7.1.116", "plan_bytes": 4}
    target = {"backend": "tensorrt_rtx", "arch": ["sm_89", "sm_120"], "lowered": "lowered/rtx-ada.onnx", "plugins": {"reason": "none"}}
    manifest = Manifest(
        vditc="0.1.0",
        model={"class": "WanTransformer3DModel", "part": "transformer", "weights": 1_000_000, "digest": "0" * 64},
        recipe={"name": "w8a8", "method": "rtn", "description": "", "digest": "0" * 64},
        layers={},
        kept={},
        mean_bits=8.125,
        sampling={
            "steps": steps,
            "guidance_scale": 3.0,
            "extra_channels": None,
            "fps": 16,
            "latent_shape": list(shape),
            "schedule": schedule.to_json(),
            "solver": solver.to_json(),
            "step_cache": CACHE.to_json(),
            **sampling,
        },
        inputs=listed(specs),
        profile=PROFILE,
        graph={},
        targets={"rtx-ada": {**target, "inputs": listed(specs), "engine": engine}},
        quality={"psnr": float("inf")},
        gate={},
        tools={},
        files=list_files(root),
        components={"vae": {"class": "AutoencoderKLWan", "tiled": tiled}} if isinstance(decoder, VideoPlan) else {},
    )
    write_manifest(root, manifest)
    return root


def save_data(folder: Path) -> None:
    """What ctest and the page run: a bundle whose decoder makes chunks of 4 frames in tiles, and clips."""
    save_bundle(folder / "bundle", decoder=cpp_decoder.chunked(8, tiles=cpp_decoder.tiles(8, 3, 2, 8)), tiled=True)
    clips().save(folder / "conditioning.safetensors")


def save_experts(root: Path, first_step: int = 2, **sampling: Any) -> Path:
    """A bundle of two experts."""
    from vditc.bundle import Bundle  # after the files are there

    save_bundle(root, guidance_scale_2=2.0, **sampling)
    manifest = Bundle.open(root).manifest
    save_bundle(root / "transformer_2", **sampling)
    inner = Bundle.open(root / "transformer_2").manifest
    whole = Solver.of_config(WAN, "fixture").walk(STEPS).schedule
    part = {**inner.sampling, "schedule": whole.part(range(first_step, STEPS)).to_json(), "steps": STEPS - first_step}
    inner = dataclasses.replace(inner, sampling=part)
    write_manifest(root / "transformer_2", inner)
    about = {"transformer_2": {"path": "transformer_2", "boundary": 0.9, "first_step": first_step}}
    write_manifest(root, dataclasses.replace(manifest, experts=about, files=list_files(root, {"transformer_2": inner})))
    return root


def clips(specs: tuple[InputSpec, ...] = SPECS, count: int = 2, seed: int = 0, **changes: Any) -> Conditioning:
    """Random conditionings."""
    random = np.random.default_rng(seed)
    sizes = {"batch": count, "text_tokens": TOKENS, "frames": LATENTS[1], "height": LATENTS[2], "width": LATENTS[3]}

    def drawn(spec: InputSpec) -> npt.NDArray[Any]:
        return spec.example(sizes, random)

    told = [spec for spec in specs[1:] if isinstance(spec.fill, str) and spec.fill != "timestep"]
    known: dict[str, Any] = {
        "prompts": tuple(f"clip {i}" for i in range(count)),
        "seeds": tuple(range(7, 7 + count)),
        "latent_shape": LATENTS,
        "inputs": {spec.name: drawn(spec) for spec in told},
        "empty": {spec.name: drawn(spec)[:1] for spec in told if spec.dims[0] == "batch" and spec.fill == "normal"},
    }
    return Conditioning(**(known | changes))


class Null:
    """What backend "null" computes, as its source says it."""

    def __init__(self, specs: tuple[InputSpec, ...] = SPECS, channels: int = LATENTS[0], expert: int = 0) -> None:
        self.specs, self.channels, self.expert = specs, channels, expert

    def __call__(self, feeds: Feeds, step: int) -> npt.NDArray[np.float32]:
        """See `vditc.sampling.Denoiser`."""

        def bounded(values: npt.NDArray[Any]) -> float:
            numbers = np.asarray(values, np.float64).ravel()
            mean = float(np.add.accumulate(numbers)[-1]) / numbers.size if numbers.size else 0.0
            return mean / (1 + abs(mean))

        latents = np.asarray(feeds[self.specs[0].name], self.specs[0].dtype)
        made = []
        for b in range(len(latents)):
            bias = 0.0
            for i, spec in enumerate(self.specs[1:], start=1):
                own = np.asarray(feeds[spec.name], spec.dtype)
                bias += 2.0 ** -(i + 2) * bounded(own[b] if spec.dims[0] == "batch" else own)
            bias += bounded(latents[b, self.channels :]) / 4
            bias += step / (1 + step) / 64 + self.expert / 8
            made.append(np.asarray(latents[b, : self.channels], np.float32) * np.float32(0.5) + np.float32(bias))
        return np.stack(made)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    save_data(folder)
