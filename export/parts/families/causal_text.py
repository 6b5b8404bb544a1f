"""What causal language models that encode prompts share: their inputs, how long a prompt is, and what a token sees."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import transformers

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.conditioner import TextInput
from vditc.export.parts.families.t5 import HIDDEN
from vditc.export.parts.part import Part
from vditc.model_dir import ModelDir
from vditc.part_graph import PartGraph


class CausalText(Part):
    """Token numbers and their mask -> `output`. Positions are counted from the left, so prompts are padded on the right."""

    config_class: ClassVar[str]
    output: ClassVar[str] = "hidden"
    quantizable: ClassVar[bool] = True

    def __init__(self, source: ModelDir, skip_layers: int = 0, tokens: int = 256) -> None:
        """`skip_layers`: blocks at the end whose output nobody wants; `tokens`: of the longest prompt, with its template."""
        super().__init__(source)
        self.skip_layers, self.tokens = skip_layers, tokens

    def for_prompts(self, text: TextInput) -> Self:
        """See `Part`."""
        return type(self)(self.source, text.skip_layers, text.tokens)

    @abc.abstractmethod
    def output_dims(self) -> tuple[int | str, ...]:
        """Of the graph's output."""

    def graphs(self) -> tuple[PartGraph, ...]:
        """input_ids, attention_mask int64 [1, prompt_tokens] -> the class's output, float32."""
        dims = (1, "prompt_tokens")
        inputs = (InputSpec("input_ids", "int64", dims, "ids"), InputSpec("attention_mask", "int64", dims, "mask"))
        return (PartGraph(name="model", inputs=inputs, output=self.output, output_dims=self.output_dims()),)

    def axes(self) -> Mapping[str, Axis]:
        """Not the transformer's text_tokens: a template makes a prompt longer, and another encoder has another length."""
        return {"prompt_tokens": Axis(default=self.tokens, low=1, high=self.tokens)}

    def config(self) -> dict[str, Any]:
        """Of the module."""
        return {k: v for k, v in self.source.config.items() if k != "_class_name"}

    def build(self) -> Any:
        """See `Part`; attention spelt out."""
        config = getattr(transformers, self.config_class)(**self.config(), attn_implementation="eager")
        model: torch.nn.Module = getattr(transformers, self.model_class)(config)
        return model.eval().requires_grad_(False)


def causal_mask(seen: torch.Tensor) -> torch.Tensor:
    """What is added to scores [B, 1, tokens, tokens] where a token sees itself and those before of which `seen` [B, tokens] is 1."""
    places = torch.arange(seen.shape[1], device=seen.device)
    visible = (places[None, :] <= places[:, None]) & (seen[:, None, None, :] != 0)
    return torch.where(visible, 0.0, HIDDEN)
