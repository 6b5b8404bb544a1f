"""Prompts become the tokens that the tokenizers package finds, id by id, or are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from ctypes import c_void_p
from pathlib import Path
from typing import Any

import cpp_text_tables
import pytest
from cpp_build import SOURCES
from cpp_library import BundleInfo, Library, LibraryError
from cpp_texts import TEXT, listed_again, save_texts, tokens_of
from cpp_tokenizers import SENTENCES, SHAPES, saved, variants
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

SPELLED = """
a red kite Two dogs Dog dogs sea <x> <y> <s> </s> <unk> <pad> <extra_id_1> <|endoftext|> <|startoftext|> <|eot_id|> fish ﬁsh slowly
aba abab bab xy xyxy kitesurf
's 'S 'll 'LL 'ſ don't 123 12345 4k ½ ² … ™ 一只 夜の街 바다 각 हिन्दी العربية ｶﾞ ｶ Ａ ① ´ İ ẞ Σ _ ▁ ! ?! -- <0x41> ﬃ ﷺ
"""
WORDS = (
    *SPELLED.split(),
    *("e\u0301", "E\u0301", "\u0301", "\u0323", "か\u3099", "\u1100\u1161", "u\u0308\u0304", "👩‍🚀", "🚀", "🩷", "\U000e0041", "\u1c89"),
    *("\ufeff", "\u200b", "\u0600", "\u00a0", "\u3000", "\x7f", "\x01", "\x85", "\u2028", "\t", "\n", "\r", "\r\n", "  ", "   "),
)
PROMPTS = st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=3), max_size=9).map(
    lambda parts: "".join(parts)
) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


class Opened:
    """A bundle with many tokenizers, each for an input of its own name."""

    def __init__(self, library: Library, bundle: c_void_p, tokenizers: dict[str, Tokenizer]) -> None:
        self.library, self.bundle, self.tokenizers = library, bundle, tokenizers

    def check(self, prompt: str, names: tuple[str, ...] = ()) -> None:
        for name in names or self.tokenizers:
            want = self.tokenizers[name].encode(prompt)
            assert tokens_of(self.library, self.bundle, prompt, name) == (want.ids, want.attention_mask), (name, prompt)


def _save(root: Path, tokenizers: dict[str, Any], **cut: Any) -> dict[str, Tokenizer]:
    texts = [dataclasses.replace(TEXT, tokenizer=name, input=name) for name in tokenizers]
    save_texts(root, texts, tokenizers, **cut)
    return {name: Tokenizer.from_file(str(root / "components" / name / "tokenizer.json")) for name in tokenizers}


@pytest.fixture(scope="module")
def opened(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    root = tmp_path_factory.mktemp("tokenizers") / "b"
    own = _save(root, {name: make() for name, make in SHAPES.items()}, length=0)
    with library.bundle(root) as bundle:
        yield Opened(library, bundle, own)


@settings(max_examples=80, deadline=None)
@given(PROMPTS)
def test_tokens_are_those_of_the_package(opened: Opened, prompt: str) -> None:
    opened.check(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        *SENTENCES,
        "",
        " ",
        "  a  ",
        "<x>",
        "</s>a </s> b",
        "´ a",
        "\ufeffa b",
        "'ſ's",
        "kitesurf",
        "it'ſab",
        "a <|STARTOFTEXT|>! b",
        "a  <x> <y>  b <y>  <x> c",
        "ab abababa xy yxyx",
        "红色的 风筝x红",
    ],
)
def test_prompts_that_are_easily_wrong(opened: Opened, prompt: str) -> None:
    opened.check(prompt)


def test_every_character(opened: Opened) -> None:
    """Alone, behind a letter, and in front of a mark: letters, digits, spaces, lower case, normal forms and clusters."""
    points = [chr(c) for c in range(1, 0x32000) if not 0xD800 <= c <= 0xDFFF and (c < 0x3100 or c % 31 == 0)]
    for begin in range(0, len(points), 24):
        opened.check(" ".join(f"{c} a{c}b {c}\u0301" for c in points[begin : begin + 24]), ("t5", "clip", "llama3", "added"))


@pytest.mark.parametrize("kind", ["metaspace", "split", "normal"])
def test_options_of_components(library: Library, tmp_path: Path, kind: str) -> None:
    own = _save(tmp_path / "b", {f"{kind}{i}": about for i, about in enumerate(variants(kind))}, length=0)
    assert len(own) > 5
    with library.bundle(tmp_path / "b") as bundle:
        opened = Opened(library, bundle, own)
        for prompt in (*SENTENCES, "", "  two  spaces_ _here ▁ ▁▁ ", "A\u0323\u0307 ǅ ﬁ 각 '´ ", "kite <x> a", "\r\n\t x\x0b\x85"):
            opened.check(prompt)


@pytest.mark.parametrize(
    "cut",
    [
        {"length": 8},
        {"length": 8, "direction": "left", "cut": "left", "pad_id": 3, "pad_token": "x"},
        {"length": 2},
        {"length": 6, "pad_to_multiple_of": 4},
    ],
)
def test_padding_and_cutting(library: Library, tmp_path: Path, cut: dict[str, Any]) -> None:
    own = _save(tmp_path / "b", {name: SHAPES[name]() for name in ("t5", "clip", "llama3")}, **cut)
    with library.bundle(tmp_path / "b") as bundle:
        for prompt in (*SENTENCES, "", "a"):
            Opened(library, bundle, own).check(prompt)


def test_padding_to_the_longest(library: Library, tmp_path: Path) -> None:
    about = json.loads(SHAPES["t5"]().to_str())
    about["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": 8,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    own = _save(tmp_path / "b", {"t5": about}, length=0)
    with library.bundle(tmp_path / "b") as bundle:
        for prompt in SENTENCES:
            Opened(library, bundle, own).check(prompt)
            assert len(tokens_of(library, bundle, prompt)[0]) % 8 == 0


def test_the_shapes_are_those_that_transformers_writes() -> None:
    from transformers import CLIPTokenizer, LlamaTokenizer, T5Tokenizer

    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2}
    theirs = {
        "t5": T5Tokenizer(extra_ids=3),
        "clip": CLIPTokenizer(vocab=vocab, merges=[]),
        "llama2": LlamaTokenizer(),
    }
    for name, tokenizer in theirs.items():
        want, got = json.loads(tokenizer.backend_tokenizer.to_str()), json.loads(SHAPES[name]().to_str())
        assert got["pre_tokenizer"] == want["pre_tokenizer"], name
        parts = [k for k in want["model"] if k not in ("vocab", "merges", "unk_id")]
        assert {k: got["model"][k] for k in parts} == {k: want["model"][k] for k in parts}, name
        if name == "clip":
            assert got["normalizer"] == want["normalizer"] and got["post_processor"].keys() == want["post_processor"].keys()


@pytest.mark.parametrize("name", cpp_text_tables.TABLES)
def test_tables_are_those_of_the_package(name: str) -> None:
    path = SOURCES / "src" / "text" / name
    assert path.read_text() == cpp_text_tables.TABLES[name](), "python tests/cpp_text_tables.py runtimes/cpp/src/text"


def _other(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        for key in path[:-1]:
            about = about[key]
        about[path[-1]] = to

    return change


REFUSED: list[tuple[Callable[[dict[str, Any]], None], str, str]] = [
    (_other("normalizer", to={"type": "BertNormalizer"}), "UNSUPPORTED", "found normalizer BertNormalizer; wanted Sequence, NFC"),
    (_other("pre_tokenizer", to={"type": "Digits"}), "UNSUPPORTED", "found pre_tokenizer Digits"),
    (
        _other("pre_tokenizer", to={"type": "Split", "pattern": {"Regex": r"\d+"}, "behavior": "Isolated", "invert": False}),
        "UNSUPPORTED",
        r"pre_tokenizer Split: found the regular expression \d+; wanted one of CLIP",
    ),
    (_other("normalizer", to={"type": "Replace", "pattern": {"Regex": "x*"}, "content": ""}), "UNSUPPORTED", "the regular expression x*"),
    (_other("normalizer", to={"type": "Precompiled", "precompiled_charsmap": "AAA?"}), "DAMAGED", "a charsmap that is not in base 64"),
    (_other("normalizer", to={"type": "Precompiled", "precompiled_charsmap": "/////w=="}), "DAMAGED", "a charsmap of 4 bytes with a trie"),
    (_other("model", "type", to="WordPiece"), "UNSUPPORTED", "found model WordPiece; wanted Unigram or BPE"),
    (_other("model", "vocab", to=[["a"]]), "DAMAGED", "found a list of 1 in vocab"),
    (_other("model", "unk_id", to=10**6), "DAMAGED", "unk_id 1000000; wanted less than"),
    (_other("model", to={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}), "DAMAGED", "merge a b"),
    (_other("model", to={"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}), "UNSUPPORTED", "dropout 0.1; wanted none"),
    (_other("model", to={"type": "BPE", "vocab": {}, "merges": [], "unk_token": "?"}), "DAMAGED", "unk_token '?'"),
    (_other("post_processor", to={"type": "Elsewhere"}), "UNSUPPORTED", "post_processor Elsewhere"),
    (_other("post_processor", "single", to=[{"Sequence": {"id": "B", "type_id": 0}}]), "UNSUPPORTED", "TemplateProcessing: found a piece"),
    (_other("truncation", "stride", to=2), "UNSUPPORTED", "truncation: found stride 2"),
    (_other("truncation", "max_length", to=0), "DAMAGED", "max_length 0 with 1 special tokens"),
    (_other("padding", "strategy", to={"Fixed": -1}), "DAMAGED", "strategy Fixed -1"),
    (_other("padding", "direction", to="Up"), "UNSUPPORTED", "direction 'Up'; wanted Left or Right"),
    (_other("version", to="2.0"), "UNSUPPORTED", "version '2.0'"),
    (_other("added_tokens", to=[{"id": 1}]), "DAMAGED", "added token an object of 1"),
]


@pytest.mark.parametrize(("change", "status", "message"), REFUSED, ids=[r[2][:30] for r in REFUSED])
def test_what_is_not_known_is_refused(
    library: Library, tmp_path: Path, change: Callable[[dict[str, Any]], None], status: str, message: str
) -> None:
    root = save_texts(tmp_path / "b", [TEXT], {"tokenizer": SHAPES["t5"]()})
    path = root / "components" / "tokenizer" / "tokenizer.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    listed_again(root)
    with library.bundle(root) as bundle, pytest.raises(LibraryError) as error:
        tokens_of(library, bundle, "a red kite")
    assert error.value.status == f"VDITC_ERROR_{status}" and message in error.value.message and "tokenizer.json" in error.value.message


def test_files_that_are_not_there(library: Library, tmp_path: Path) -> None:
    root = save_texts(tmp_path / "b", [TEXT], {"tokenizer": SHAPES["t5"]()})
    path = root / "components" / "tokenizer" / "tokenizer.json"
    with library.bundle(root) as bundle:
        assert library.info("bundle_info_get", BundleInfo, bundle).encodes == 1
        with pytest.raises(LibraryError, match="INPUT: prompt: found byte ff at 2, which is no UTF-8"):
            tokens_of(library, bundle, b"ab\xff")
        with pytest.raises(LibraryError, match="NOT_FOUND: bundle: found no text encoder for other; wanted encoder_hidden_states"):
            tokens_of(library, bundle, "a", "other")
        path.write_text("{")
        with pytest.raises(LibraryError, match=r"DAMAGED: .*tokenizer.json: found no JSON"):
            tokens_of(library, bundle, "a")
        path.write_text("[]")
        with pytest.raises(LibraryError, match="found a list of 0; wanted a tokenizer"):
            tokens_of(library, bundle, "a")
        path.unlink()
        with pytest.raises(LibraryError, match=r"NOT_FOUND: .*tokenizer.json"):
            tokens_of(library, bundle, "a")
    saved(SHAPES["t5"](), path)
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["files"]["components/tokenizer/tokenizer.json"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    with (
        library.bundle(root) as bundle,
        pytest.raises(LibraryError, match=r"DAMAGED: .*found no components/tokenizer/tokenizer.json in the"),
    ):
        tokens_of(library, bundle, "a")
