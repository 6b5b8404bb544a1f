"""Text encoders and VAEs of diffusers' video pipelines that are not exported, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

_LANGUAGE = "a language model whose masks, or images beside the prompt, its pipeline treats in a way of its own"

NOT_EXPORTED: Mapping[str, str] = {
    "AutoencoderKLAllegro": (
        "it decodes only in tiles that a clip must be cut into without a rest, and weighs all that overlap at a place at once; "
        "decoder.json has tiles that are blended with the one before, the last one smaller"
    ),
    "AutoencoderKLTemporalDecoder": "its pipelines make a clip of an image",
    "Gemma2Model": _LANGUAGE,
    "LlavaForConditionalGeneration": _LANGUAGE,
    "Qwen2_5_VLForConditionalGeneration": _LANGUAGE,
    "Qwen2VLForConditionalGeneration": _LANGUAGE,
}
