"""Bundles with text encoders for hosts, and what backend "null" computes for their graphs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cpp_bundle import SPECS, save_bundle
from cpp_library import Library, LibraryError
from cpp_tokenizers import saved
from tokenizers import Tokenizer

from vditc.adapter import InputSpec
from vditc.bundle import Bundle, list_files, write_manifest
from vditc.conditioner import Conditioner, TextInput
from vditc.video_plan import VideoPlan

Array = npt.NDArray[Any]
TEXT = TextInput(
    encoder="text_encoder",
    tokenizer="tokenizer",
    max_length=24,
    clean=(),
    masked=True,
    zero_padding=True,
    empty_hidden=False,
    input="encoder_hidden_states",
    mask_input=None,
)


def save_texts(
    root: Path,
    texts: Sequence[TextInput],
    tokenizers: Mapping[str, Tokenizer | dict[str, Any]],
    specs: tuple[InputSpec, ...] = SPECS,
    decoder: VideoPlan | None = None,
    **cut: Any,
) -> Path:
    """A bundle whose prompts go through `texts`; its encoders have no files, for nobody opens them."""
    save_bundle(root, specs=specs, decoder=decoder)
    for folder, tokenizer in tokenizers.items():
        saved(tokenizer, root / "components" / folder / "tokenizer.json", **cut)
    Conditioner(name="tiny", pipeline="TinyPipeline", fps=16, steps=4, guidance_scale=3.0, text=tuple(texts)).save(root / "components")
    return listed_again(root)


def listed_again(root: Path) -> Path:
    """After files were changed."""
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").unlink()
    files = list_files(root)
    (root / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    for name in manifest["files"]:
        assert name in files or name.startswith("components/")
    opened = Bundle.open(root).manifest
    write_manifest(root, dataclasses.replace(opened, files=files))
    return root


def tokens_of(library: Library, bundle: c_void_p, prompt: str | bytes, name: str | None = None) -> tuple[list[int], list[int]]:
    """ids and mask of vditc_bundle_tokenize."""
    needed = c_uint64()
    words = prompt.encode() if isinstance(prompt, str) else prompt
    arguments = (bundle, words, name.encode() if name else None)
    ids, mask = np.zeros(4096, np.int64), np.zeros(4096, np.int64)
    library("bundle_tokenize", *arguments, c_void_p(ids.ctypes.data), c_void_p(mask.ctypes.data), c_uint64(4096), byref(needed))
    return ids[: needed.value].tolist(), mask[: needed.value].tolist()


def encode(library: Library, session: c_void_p, prompts: Sequence[str], negatives: Sequence[str] | None, conditioning: c_void_p) -> None:
    """vditc_session_encode."""
    texts = (c_char_p * len(prompts))(*[p.encode() for p in prompts])
    others = None if negatives is None else (c_char_p * len(negatives))(*[n.encode() for n in negatives])
    library("session_encode", session, texts, others, c_uint64(len(prompts)), conditioning)


def failure(library: Library, name: str, *arguments: Any) -> LibraryError:
    """Of a call that must fail."""
    try:
        library(name, *arguments)
    except LibraryError as error:
        return error
    raise AssertionError(f"vditc_{name} did not fail")


def null_graph(inputs: Sequence[Array], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The only output of a graph on backend "null", as docs/cpp.md has it."""

    def bounded(value: Array | np.float64) -> Any:
        return value / (1 + np.abs(value))

    first = np.asarray(inputs[0], np.float64)
    bias = 0.0
    for i, other in enumerate(inputs[1:], start=1):
        numbers = np.asarray(other, np.float64).ravel()
        bias += 2.0 ** -(i + 2) * float(bounded(np.add.accumulate(numbers)[-1] / numbers.size))
    extra = int(np.prod(shape[first.ndim :], dtype=np.int64))
    k = np.arange(extra) * 37 % 64
    pattern = (k - 32.0) / 64 if extra > 1 else np.zeros(1)
    kept = min(first.ndim, len(shape))
    index = np.ix_(*[np.arange(shape[a]) * first.shape[a] // shape[a] for a in range(kept)])
    read = first[(*index, *[0] * (first.ndim - kept))]
    made: Array = (bounded(read) + bias)[..., None] + pattern
    return np.asarray(made.reshape(shape), np.float32)
