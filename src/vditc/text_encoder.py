"""A word embedding as text encoder: a prompt becomes a short sequence of trained vectors, without PyTorch.

Stored as a diffusers component: `config.json` (vocabulary, length) and `model.safetensors` (`embedding.weight`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from vditc.errors import InputError
from vditc.safetensors_file import write_tensors

PAD = "<pad>"


@dataclasses.dataclass(frozen=True)
class WordEmbedding:
    """Words and their vectors; an unused place, and the whole empty prompt, is the trained vector of `<pad>`."""

    vocabulary: tuple[str, ...]  # the first word is PAD
    length: int  # tokens in an encoded prompt
    weight: npt.NDArray[np.float32]  # [len(vocabulary), text_dim]

    def token_ids(self, prompt: str) -> list[int]:
        """Word numbers, padded to `length`; InputError for a word that the model never saw or a prompt too long."""
        words = prompt.lower().split()
        unknown = [w for w in words if w not in self.vocabulary]
        if unknown or len(words) > self.length:
            raise InputError(
                found=f"prompt {prompt!r}" + (f" with unknown words {unknown}" if unknown else f" of {len(words)} words"),
                wanted=f"at most {self.length} words of: {', '.join(self.vocabulary[1:])}",
                where="text encoder",
                fix="use only these words",
            )
        ids = [self.vocabulary.index(w) for w in words]
        return ids + [0] * (self.length - len(ids))

    def encode(self, prompts: list[str]) -> npt.NDArray[np.float32]:
        """float32 [len(prompts), length, text_dim]."""
        return self.weight[np.array([self.token_ids(p) for p in prompts], np.int64)]

    def inputs(self, prompts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """The same by the name of the transformer's input, as every text encoder gives it."""
        return {"encoder_hidden_states": self.encode(list(prompts))}

    @classmethod
    def load(cls, folder: Path) -> WordEmbedding:
        """Read a component folder that `save` wrote."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        weight = load_file(folder / "model.safetensors")["embedding.weight"].astype(np.float32)
        return cls(tuple(config["vocabulary"]), int(config["length"]), weight)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (float16) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": "WordEmbedding", "length": self.length, "vocabulary": list(self.vocabulary)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_tensors(folder / "model.safetensors", {"embedding.weight": self.weight.astype(np.float16)})
