"""Whether both branches of guidance run as one batch or one by one, as an engine's profile allows."""

from __future__ import annotations

from vditc.bundle import Bundle
from vditc.errors import InputError
from vditc.sampling import Passes

PORTABLE = "onnxruntime"  # the backend that runs model.onnx itself
PASSES: dict[Passes, int] = {"batched": 2, "two": 1}  # of guidance -> clips that the model runs at once


def guidance_passes(bundle: Bundle, backend: str, asked: Passes | None) -> Passes:
    """Both branches in one run of the model where the engine takes that, or one by one; InputError for what it does not take.

    The portable graph takes any number of clips where it names that axis.
    """
    manifest = bundle.manifest
    inputs = manifest.inputs if backend == PORTABLE else manifest.targets[backend]["inputs"]
    clips = inputs[0]["dims"][0]  # a number, or the axis's name
    low, _, high = (clips, clips, clips) if isinstance(clips, int) else (1, 1, 2) if backend == PORTABLE else manifest.profile[clips]
    takes: list[Passes] = [name for name, count in PASSES.items() if low <= count <= high]
    if not takes or asked not in (None, *takes):
        raise InputError(
            found=f"--guidance-passes {asked or 'auto'} with an engine for {low} to {high} clips at once",
            wanted=" or ".join(takes) or "an engine for one clip or two",
            where=f"{bundle.path}, {backend}",
            fix="choose another way, --guidance 1, or build an engine with --profile batch=1:2:2",
        )
    return asked or ("batched" if "batched" in takes else "two")
