"""The exported parts of a bundle, from its `components/` folder: by ONNX Runtime, or by the engines of one target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from vditc.conditioner import FILE as CONDITIONER
from vditc.conditioner import Conditioner
from vditc.part_graph import PartGraph
from vditc.runtimes.parts.prompt_tokens import PromptTokens
from vditc.runtimes.parts.text_encoder import TextEncoder
from vditc.runtimes.parts.video_decoder import PartRunner, VideoDecoder
from vditc.video_plan import FILE as DECODER


def open_text_encoder(components: Path, target: str | None, about: Mapping[str, Any]) -> TextEncoder | None:
    """What encodes prompts; None where the folder has no text encoder. `about`: the manifest's components."""
    if not (components / CONDITIONER).exists():
        return None
    return TextEncoder(
        Conditioner.load(components),
        lambda folder: PromptTokens(components / folder),
        lambda folder: _open(components / folder, "model", target, about.get(folder)),
    )


def open_video_decoder(components: Path, target: str | None, about: Mapping[str, Any]) -> VideoDecoder | None:
    """What decodes latents into frames, in tiles where the bundle was compiled so; None where the folder has no decoder."""
    folder = components / "vae"
    if not (folder / DECODER).exists():
        return None

    def open_graph(graph: PartGraph) -> AbstractContextManager[PartRunner]:
        return _open(folder, graph.name, target, about.get("vae"))

    return VideoDecoder.load(folder, open_graph, tiled=bool(about.get("vae", {}).get("tiled")))


def _open(folder: Path, graph: str, target: str | None, about: Mapping[str, Any] | None) -> AbstractContextManager[PartRunner]:
    """One graph: portable in ONNX Runtime unless the target has an engine of it."""
    built = ((about or {}).get("targets", {}).get(target) or {}).get("graphs", {}).get(graph, {})
    if "engine" not in built:
        from vditc.runtimes.parts.session import open_ort_part  # here, so that engines run without onnxruntime

        return open_ort_part(folder / f"{graph}.onnx")
    return _open_engine(built["engine"]["backend"], folder / "engines" / str(target) / graph / "model.plan", folder / built["lowered"])


@contextmanager
def _open_engine(module: str, plan: Path, model: Path) -> Iterator[PartRunner]:
    from vditc.runtimes.trt_runner import open_engine  # here, so that parts run elsewhere without onnx

    with open_engine(module, plan, model) as engine:
        yield engine.run
