"""Text encoders and VAEs of diffusers' video pipelines that are not exported, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

_LANGUAGE = "a language model whose masks, or images beside the prompt, its pipeline treats in a way of its own"

NOT_EXPORTED: Mapping[str, str] = {
    "AutoencoderKLAllegro": "it decodes only in tiles of space and time that overlap",
    "AutoencoderKLCosmos": "its wavelets and its decoder are one graph of a whole clip with fixed positions",
    "AutoencoderKLHunyuanVideo15": "it decodes the whole clip at once, with attention over all of its frames",
    "AutoencoderKLLTX2Video": "it belongs to a pipeline that makes sound as well",
    "AutoencoderKLMagvit": "its chunks are decoded apart, one latent frame, then two at a time and what is left",
    "AutoencoderKLMochi": "it decodes the whole clip at once and drops frames in front, in more memory than a device has",
    "AutoencoderKLTemporalDecoder": "its pipelines make a clip of an image",
    "Gemma2Model": _LANGUAGE,
    "LlavaForConditionalGeneration": _LANGUAGE,
    "Qwen2_5_VLForConditionalGeneration": _LANGUAGE,
    "Qwen2VLForConditionalGeneration": _LANGUAGE,
}
