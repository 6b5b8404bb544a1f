"""Inputs and outputs of the models that clients talk to: `pipeline`, one answer a request, and `pipeline_stream`, frames as they come."""

from __future__ import annotations

from vditc.bundle import Bundle
from vditc.pipeline.triton.config import ANY, ModelConfig, Tensor
from vditc.pipeline.triton.served_pipeline import EMPTY, MAX_CLIPS, needed_specs, told_specs

NAME, STREAM = "pipeline", "pipeline_stream"
LIMITS = ((MAX_CLIPS, "16"),)  # frames of so many of 81 x 480 x 832 fit into an answer of gRPC, 2 GB
_OPTIONS = (  # name, type, axes; float64 is what a number of Python is, so that clips are those of `vditc.Sampler`
    ("size", "int32", (3,)),
    ("steps", "int32", (1,)),
    ("solver", "str", (1,)),
    ("shift", "float64", (1,)),
    ("guidance", "float64", (1,)),
    ("guidance_passes", "str", (1,)),
    ("step_cache", "str", (1,)),
)


def pipeline_configs(bundle: Bundle, *, encodes: bool, decodes: bool) -> tuple[ModelConfig, ModelConfig]:
    """Of both. `encodes`, `decodes`: whether prompts become inputs, and latents frames."""
    inputs, shape = _inputs(bundle, encodes=encodes), tuple(bundle.manifest.sampling["latent_shape"])
    latents = Tensor("latents", "float32", (ANY, int(shape[0]), ANY, ANY, ANY))
    frames, first = Tensor("frames", "uint8", (ANY, ANY, ANY, 3)), Tensor("first_frame", "int32", (1,))
    whole = [latents, *([Tensor("frames", "uint8", (ANY, ANY, ANY, ANY, 3))] if decodes else [])]
    streamed = [Tensor("clip", "int32", (1,)), latents, *([first, frames] if decodes else [])]
    return (
        ModelConfig(name=NAME, backend="python", inputs=inputs, outputs=whole, on_gpu=False, parameters=LIMITS),
        ModelConfig(name=STREAM, backend="python", inputs=inputs, outputs=streamed, on_gpu=False, decoupled=True, parameters=LIMITS),
    )


def _inputs(bundle: Bundle, *, encodes: bool) -> list[Tensor]:
    about = bundle.manifest.sampling
    specs = told_specs(bundle.manifest.inputs)
    channels = int(about["latent_shape"][0])
    found: list[tuple[str, str, tuple[int, ...]]] = [("prompt", "str", (ANY,)), ("negative_prompt", "str", (1,))] if encodes else []
    for spec in needed_specs(specs):
        dims = tuple(d if isinstance(d, int) else ANY for d in spec.dims)
        found += [(spec.name, spec.dtype, dims), *([(f"{EMPTY}{spec.name}", spec.dtype, dims)] if spec.dims[0] == "batch" else [])]
    found += [("seed", "int64", (ANY,)), *_OPTIONS]
    found += [("guidance_2", "float64", (1,))] if bundle.experts else []
    found += [("embedded_guidance", "float64", (1,))] if any(s.name == "guidance" and not isinstance(s.fill, str) for s in specs) else []
    found += [("noise", "float32", (ANY, channels, ANY, ANY, ANY))]
    whole = specs[0].dims[1]
    if whole != channels and about["extra_channels"] is None:  # of an image that clips begin with
        found.append(("channels", "float32", (ANY, whole - channels if isinstance(whole, int) else ANY, ANY, ANY, ANY)))
    found += [("known", "float32", (ANY, channels, ANY, ANY, ANY)), ("known_frames", "int64", (ANY,))]
    return [Tensor(name, dtype, dims, optional=True) for name, dtype, dims in found]
