"""T5's encoder and its multilingual relative: CogVideoX, LTX-Video, Mochi and Allegro have the one, Wan has the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import transformers

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.export.parts.part import Part
from vditc.part_graph import PartGraph

HIDDEN = -3e38  # added to the scores of what is hidden: nothing is left of them, also where everything is hidden; fits float32 and bfloat16
_LONGEST = 512  # tokens; positions are relative, so this is what pipelines use, not what the class could


class T5(Part):
    """Token numbers and their mask -> the last hidden state."""

    model_class: ClassVar[str] = "T5EncoderModel"
    config_class: ClassVar[str] = "T5Config"
    quantizable: ClassVar[bool] = True
    block_lists: ClassVar[tuple[str, ...]] = ("encoder.block",)

    def graphs(self) -> tuple[PartGraph, ...]:
        """input_ids, attention_mask int64 [1, text_tokens] -> hidden float32 [1, text_tokens, d_model]."""
        dims = (1, "text_tokens")
        return (
            PartGraph(
                name="model",
                inputs=(InputSpec("input_ids", "int64", dims, "ids"), InputSpec("attention_mask", "int64", dims, "mask")),
                output="hidden",
                output_dims=(*dims, int(self.source.config["d_model"])),
            ),
        )

    def axes(self) -> Mapping[str, Axis]:
        """Up to 512 tokens."""
        return {"text_tokens": Axis(default=_LONGEST, low=1, high=_LONGEST)}

    def build(self) -> Any:
        """See `Part`; attention spelt out."""
        known = {k: v for k, v in self.source.config.items() if k != "_class_name"}
        config = getattr(transformers, self.config_class)(**known, attn_implementation="eager")
        model: torch.nn.Module = getattr(transformers, self.model_class)(config)
        return model.eval().requires_grad_(False)

    def forward(self, model: Any, graph: PartGraph, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """The mask is handed over as what is added to the scores [1, 1, 1, tokens], which the class takes as it is."""
        hidden = (1 - feeds["attention_mask"][:, None, None, :].to(torch.float32)) * HIDDEN
        length = feeds["input_ids"].shape[1]
        mask = hidden.expand(-1, 1, length, length)
        return (model(input_ids=feeds["input_ids"], attention_mask=mask, return_dict=False)[0],)


class UMT5(T5):
    """Every block has position biases of its own."""

    model_class: ClassVar[str] = "UMT5EncoderModel"
    config_class: ClassVar[str] = "UMT5Config"
