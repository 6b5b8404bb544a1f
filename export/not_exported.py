"""Transformers of diffusers that look like video models and are not exported, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

NOT_EXPORTED: Mapping[str, str] = {
    "AnyFlowFARTransformer3DModel": "it generates chunk by chunk: keys and values of earlier chunks stay in a cache between calls",
    "JoyImageEditPlusTransformer3DModel": "it edits images, and takes each at its own size",
    "JoyImageEditTransformer3DModel": "it edits images",
    "Kandinsky6SRTransformer3DModel": "its attention (NABLA) chooses blocks of keys by their values, which a static graph cannot skip",
    "SanaWMLTX2RefinerTransformer3DModel": "it refines block by block: keys and values of earlier blocks stay in a cache between calls",
    "SanaWMTransformer3DModel": "its linear attention carries a state from frame to frame, in a loop as long as the clip",
    "WanAnimate2Transformer3DModel": "keys and values of the reference clip stay in a cache between calls",
}
