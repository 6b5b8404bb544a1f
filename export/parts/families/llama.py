"""Llama as HunyuanVideo reads it: what the last blocks but a few would be given, of a prompt in a template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch

from vditc.errors import InputError
from vditc.export.parts.families.causal_text import CausalText, causal_mask
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir

_LAYER = re.compile(r"layers\.(\d+)\.")


class Llama(CausalText):
    """Token numbers and their mask -> a hidden state; with all blocks it is the normed one, as transformers has it."""

    model_class: ClassVar[str] = "LlamaModel"
    config_class: ClassVar[str] = "LlamaConfig"
    block_lists: ClassVar[tuple[str, ...]] = ("layers",)

    def __init__(self, source: ModelDir, skip_layers: int = 0, tokens: int = 256) -> None:
        """InputError for a model of no more blocks than are skipped, or rotations that follow a prompt's length."""
        super().__init__(source, skip_layers, tokens)
        if self.blocks < 1:
            raise InputError(
                found=f"{source.config['num_hidden_layers']} blocks",
                wanted=f"more than the {skip_layers} that are skipped",
                where=str(source.transformer / "config.json"),
                fix="use the text encoder that the pipeline was published with",
            )
        kinds = {str((source.config.get(k) or {}).get("rope_type", "default")) for k in ("rope_parameters", "rope_scaling")}
        if wrong := kinds & {"dynamic", "longrope"}:
            raise InputError(
                found=f"rope_type {', '.join(sorted(wrong))}: rotations that follow a prompt's length",
                wanted="rotations that do not",
                where=str(source.transformer / "config.json"),
                fix="encode with the model's own pipeline (docs/conditioning.md)",
            )

    @property
    def blocks(self) -> int:
        """That are run."""
        return int(self.source.config["num_hidden_layers"]) - self.skip_layers

    def output_dims(self) -> tuple[int | str, ...]:
        """Of the hidden state."""
        return 1, "prompt_tokens", int(self.source.config["hidden_size"])

    def config(self) -> dict[str, Any]:
        """With the blocks that are run."""
        return {**super().config(), "num_hidden_layers": self.blocks}

    def used(self, name: str) -> bool:
        """Neither blocks that are skipped nor, with them, the last norm."""
        layer = _LAYER.match(name)
        return int(layer[1]) < self.blocks if layer else name != "norm.weight" or not self.skip_layers

    def forward(self, model: Any, graph: Any, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """See `Part`."""
        with self.patched(model):
            found = model(input_ids=feeds["input_ids"], attention_mask=causal_mask(feeds["attention_mask"]), use_cache=False)
        return (found.last_hidden_state,)

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Rotations without what is for other kinds of them; the output of the last block as it is where blocks are skipped."""
        changes: list[tuple[Any, str, Any]] = [(model.rotary_emb, "forward", partial(_rotary, model.rotary_emb))]
        with replaced(*changes, *([(model.norm, "forward", lambda x: x)] if self.skip_layers else [])):
            yield


def _rotary(rotary: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of each place [1, tokens, head_dim]."""
    angles = position_ids[..., None].to(torch.float32) * rotary.inv_freq
    both = torch.cat([angles, angles], -1)
    return both.cos() * rotary.attention_scaling, both.sin() * rotary.attention_scaling
