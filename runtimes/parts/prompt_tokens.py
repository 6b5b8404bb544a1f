"""Prompts -> token numbers, with the tokenizers package alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError

FILE = "tokenizer.json"
Ids = npt.NDArray[np.int64]


class PromptTokens:
    """A tokenizer whose file says how it pads and cuts, as `vditc compile` writes it."""

    def __init__(self, folder: Path) -> None:
        """InputError when the package or the file is missing, or the file is no tokenizer."""
        path = folder / FILE
        if importlib.util.find_spec("tokenizers") is None:
            raise InputError(
                found="tokenizers is not installed",
                wanted="the package that reads tokenizer.json",
                where=str(path),
                fix="pip install tokenizers",
            )
        from tokenizers import Tokenizer

        try:
            self.tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise InputError(
                found=str(error).splitlines()[0], wanted="a tokenizer", where=str(path), fix="compile the bundle again"
            ) from error

    def __call__(self, prompts: list[str]) -> tuple[Ids, Ids]:
        """Token numbers and mask (1: a token, 0: padding), int64 [prompts, tokens]."""
        found = self.tokenizer.encode_batch(prompts)
        return np.array([e.ids for e in found], np.int64), np.array([e.attention_mask for e in found], np.int64)
