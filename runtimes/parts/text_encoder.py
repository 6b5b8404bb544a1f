"""Prompts -> what the transformer is told of them, by the names of its inputs: tokenizers, and a graph for every text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.conditioner import Conditioner, TextInput
from vditc.prompt_cleaning import clean_prompt
from vditc.runtimes.parts.prompt_tokens import PromptTokens
from vditc.runtimes.parts.video_decoder import PartRunner

Array = npt.NDArray[Any]
Opener = Callable[[str], AbstractContextManager[PartRunner]]  # folder of a text encoder -> what runs it


class TextEncoder:
    """The text side of a pipeline. An encoder is open while prompts are encoded, and one prompt is encoded at a time."""

    def __init__(self, conditioner: Conditioner, tokens: Callable[[str], PromptTokens], open_encoder: Opener, *, batch: int = 1) -> None:
        """`tokens`: of a tokenizer's folder. `batch`: prompts that go through at once, for a model that is read anew every time."""
        self.conditioner, self.tokens, self.open_encoder, self.batch = conditioner, tokens, open_encoder, batch

    def inputs(self, prompts: Sequence[str]) -> dict[str, Array]:
        """Inputs of the transformer for these prompts, [prompts, tokens, ...], or [prompts, ...] of an encoder that gives one vector."""
        found: dict[str, Array] = {}
        for text in self.conditioner.text:
            hidden, mask = self._encoded(text, list(prompts))
            found[text.input] = hidden
            if text.mask_input is not None:
                found[text.mask_input] = mask
        return found

    def _encoded(self, text: TextInput, prompts: list[str]) -> tuple[Array, Array]:
        ids, mask = self.tokens(text.tokenizer)([text.template.replace("{}", clean_prompt(p, text.clean)) for p in prompts])
        if text.empty_hidden:
            empty = np.array([not p for p in prompts])
            ids[empty], mask[empty] = 0, 0
        seen = mask if text.masked else np.ones_like(mask)
        with self.open_encoder(text.encoder) as run:
            rows = [self._run(run, text, ids[i : i + self.batch], seen[i : i + self.batch]) for i in range(0, len(prompts), self.batch)]
        hidden = np.concatenate(rows)
        if hidden.ndim == 2:
            return hidden, mask
        hidden, mask = hidden[:, text.template_tokens :], mask[:, text.template_tokens :]
        if text.zero_padding:
            hidden = hidden * mask[..., None].astype(np.float32)
        return hidden, mask

    def _run(self, run: PartRunner, text: TextInput, ids: Array, seen: Array) -> Array:
        """What is hidden and becomes zero need not be computed."""
        length = ids.shape[1]
        used = max(1, int(seen.sum(1).max())) if text.zero_padding and text.masked and seen[:, 0].all() else length
        (hidden,) = run({"input_ids": ids[:, :used], "attention_mask": seen[:, :used]}).values()
        hidden = np.asarray(hidden, np.float32)
        return hidden if used == length else np.pad(hidden, ((0, 0), (0, length - used), (0, 0)))


def split(inputs: Mapping[str, Array], count: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """The first `count` prompts' inputs, and those of the others."""
    return {n: a[:count] for n, a in inputs.items()}, {n: a[count:] for n, a in inputs.items()}
