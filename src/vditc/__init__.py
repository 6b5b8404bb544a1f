"""vditc, the video diffusion transformer compiler."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vditc.pipeline.diffusers_module import CompiledTransformer
    from vditc.pipeline.sampler import Sampler

__all__ = ["Sampler", "load"]


def load(bundle: str | PathLike[str], *, backend: str | None = None, dtype: torch.dtype | None = None) -> CompiledTransformer:
    """The bundle's transformer as a module for diffusers pipelines, which takes the place of `pipe.transformer`:

        with vditc.load("wan.bundle") as transformer:
            pipe = WanPipeline.from_pretrained(MODEL_DIR, transformer=transformer)
            frames = pipe("a red ball rolls", num_inference_steps=50).frames[0]

    `backend`: onnxruntime, or a target of the bundle; by default the target whose engine is for this machine's GPU, and onnxruntime on a
    machine without one. `dtype`: what pipelines feed it, by default what the target computes in. InputError for a damaged bundle, a GPU
    without an engine, a family that diffusers has no pipeline for. Needs torch and diffusers.
    """
    from vditc.pipeline.diffusers_module import load_transformer

    return load_transformer(Path(bundle), backend, dtype)


def __getattr__(name: str) -> Any:
    """`vditc.Sampler`, loaded when it is asked for: the commands' start waits for no sampler."""
    if name == "Sampler":
        from vditc.pipeline.sampler import Sampler

        return Sampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
