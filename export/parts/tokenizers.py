"""A pipeline's tokenizer as one `tokenizer.json`, which the tokenizers package reads without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.files import write_text


def save_tokenizer(model_dir: Path, folder: str, max_length: int, out: Path) -> None:
    """Write `out`/tokenizer.json of the tokenizer in `model_dir`/`folder`, as transformers reads it; it pads and cuts to `max_length`.

    A folder with spiece.model alone is converted, which takes the sentencepiece package. InputError for a tokenizer that cannot be read,
    or that runs in Python only.
    """
    path = model_dir / folder
    tokenizer = _loaded(model_dir, path)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.pad_token_id is None:
        raise InputError(
            found=f"{type(tokenizer).__name__}, {'without a padding token' if backend is not None else 'a tokenizer in Python'}",
            wanted="a tokenizer of the tokenizers package that pads",
            where=str(path),
            fix="save the pipeline with a fast tokenizer",
        )
    own = type(backend).from_str(backend.to_str())
    own.enable_truncation(max_length=max_length, direction=tokenizer.truncation_side)
    own.enable_padding(
        length=max_length,
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    write_text(out / "tokenizer.json", json.dumps(json.loads(own.to_str()), ensure_ascii=False, sort_keys=True) + "\n")


def _loaded(model_dir: Path, path: Path) -> Any:
    """By the class that model_index.json names, or that the folder itself names."""
    index = read_json(model_dir / "model_index.json")
    named = index.get(path.name) or ["", ""]
    kind = getattr(transformers, str(named[-1]), None) or transformers.AutoTokenizer
    try:
        return kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # whatever transformers raises for a folder that it cannot read
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            found=said[0],
            wanted="a tokenizer that transformers reads",
            where=str(path),
            fix="pip install sentencepiece for a folder that has spiece.model alone, or copy its tokenizer.json too",
        ) from error
