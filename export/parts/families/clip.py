"""CLIP's text encoder as a second encoder: one vector for a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from vditc.errors import InputError
from vditc.export.parts.families.causal_text import CausalText, causal_mask
from vditc.model_dir import ModelDir

_PREFIX = "text_model."  # of names in files that older versions of transformers wrote


class Clip(CausalText):
    """Token numbers and their mask -> the normed state of the token that ends the prompt."""

    model_class: ClassVar[str] = "CLIPTextModel"
    config_class: ClassVar[str] = "CLIPTextConfig"
    output: ClassVar[str] = "pooled"
    block_lists: ClassVar[tuple[str, ...]] = ("encoder.layers",)

    def __init__(self, source: ModelDir, skip_layers: int = 0, tokens: int = 77) -> None:
        """InputError for prompts longer than the model has positions, and for `skip_layers`: the vector is made of the last state."""
        longest = int(source.config.get("max_position_embeddings", 77))
        if tokens > longest or skip_layers:
            raise InputError(
                found=f"prompts of {tokens} tokens, {skip_layers} blocks skipped",
                wanted=f"at most {longest} tokens and all blocks",
                where=str(source.transformer / "config.json"),
                fix="correct the pipeline's file of src/vditc/conditioners",
            )
        weights = {name.removeprefix(_PREFIX): entry for name, entry in source.weights.items()}
        super().__init__(dataclasses.replace(source, weights=weights), skip_layers, tokens)

    def output_dims(self) -> tuple[int | str, ...]:
        """Of the vector."""
        return 1, int(self.source.config["hidden_size"])

    def used(self, name: str) -> bool:
        """Older files number the positions."""
        return not name.endswith("position_ids")

    def forward(self, model: Any, graph: Any, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """Where a prompt ends is asked as transformers asks: the highest token of files that call 2 the end, else the first end."""
        ids = feeds["input_ids"]
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        found = model(input_ids=ids, attention_mask=causal_mask(feeds["attention_mask"]), position_ids=places)
        tokens = ids.to(torch.int32)
        end = (tokens if model.eos_token_id == 2 else (tokens == model.eos_token_id).to(torch.int32)).argmax(-1, keepdim=True)
        hidden = found.last_hidden_state
        return (torch.gather(hidden, 1, end[..., None].expand(-1, -1, hidden.shape[-1]))[:, 0],)
