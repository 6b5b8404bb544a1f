"""Small tokenizers in the shapes that transformers and its converters write for text encoders of video pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cpp_charsmap import charsmap
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "a red kite over the sea",
    "Two dogs run in the snow, slowly; they're happy & don't stop!",
    "the city at night seen from above — 4k, 1080p, 24 fps",
    "waves break on a dark shore   and the wind blows",
    "naïve café, Übergröße, señor ¿qué?, œuvre",
    "一只红色的风筝在海上飞, 夜の街, 바다 위의 연",
    "красный змей над морем Ωμέγα हिन्दी ไทย العربية",
    "👩‍🚀 floats 🚀✨ 🩷 in space",
)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
RULES = charsmap(
    {
        "\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u3000": " ", "\u200b": " ", "\ufeff": "", "\x7f": "", "™": "TM", "…": "...",
        "①": "1", "½": "1\u20442", "ﬁ": "fi", "e\u0301": "é", "E\u0301": "É", "か\u3099": "が", "Ａ": "A",
        "´": " \u0301", "\u0600": "N", "ｶ": "カ", "ｶﾞ": "ガ",
    }
)  # fmt: skip


def _bytes() -> list[str]:
    return [f"<0x{i:02X}>" for i in range(256)]


def _pieces(specials: list[str], size: int = 300) -> list[tuple[str, float]]:
    """A trained Unigram vocabulary."""
    own = Tokenizer(models.Unigram())
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.train_from_iterator(
        SENTENCES, trainers.UnigramTrainer(vocab_size=size, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    vocab: list[tuple[str, float]] = [tuple(entry) for entry in json.loads(own.to_str())["model"]["vocab"]]
    return vocab


def t5() -> Tokenizer:
    """T5TokenizerFast."""
    own = Tokenizer(models.Unigram(_pieces(["<pad>", "</s>", "<unk>"]), unk_id=2, byte_fallback=False))
    own.normalizer = normalizers.Precompiled(RULES)
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    own.decoder = decoders.Metaspace()
    own.add_special_tokens(["<pad>", "</s>", "<unk>", *(AddedToken(f"<extra_id_{i}>", lstrip=True, rstrip=True) for i in range(3))])
    own.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return own


def umt5() -> Tokenizer:
    """UMT5's file: bytes for what is unknown, spaces as they are."""
    vocab = _pieces(["<pad>", "</s>", "<s>", "<unk>"])
    own = Tokenizer(models.Unigram([*vocab[:4], *((b, 0.0) for b in _bytes()), *vocab[4:]], unk_id=3, byte_fallback=True))
    parts = [normalizers.Precompiled(RULES), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    own.normalizer = normalizers.Sequence(parts)
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    own.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return own


def clip(special: bool = True) -> Tokenizer:
    """CLIPTokenizerFast."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    own = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    own.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    pattern = (r"<\|startoftext\|>|<\|endoftext\|>|" if special else "") + CLIP
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[start, end], initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    own.train_from_iterator(SENTENCES, trainer)
    about = json.loads(own.to_str())
    about["model"]["continuing_subword_prefix"] = ""
    vocab = about["model"]["vocab"]
    for letter in letters:  # the trainer leaves out the ends of words that it has not seen
        vocab.setdefault(f"{letter}</w>", len(vocab))
    own = Tokenizer.from_str(json.dumps(about))
    own.post_processor = processors.RobertaProcessing((end, 1), (start, 0), trim_offsets=False, add_prefix_space=False)
    own.add_special_tokens([AddedToken(start, normalized=not special), AddedToken(end, normalized=False)])
    return own


def llama3() -> Tokenizer:
    """Llama 3's file, and GPT's where `use_regex`."""
    own = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated", invert=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    own.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    about = json.loads(own.to_str())
    about["model"]["vocab"]["kitesurf"] = len(about["model"]["vocab"])  # a word that no merges make
    own = Tokenizer.from_str(json.dumps(about))
    own.add_special_tokens(["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", own.token_to_id("<|begin_of_text|>"))]
    )
    own.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return own


def qwen2() -> Tokenizer:
    """Qwen 2's file: NFC, single digits."""
    own = llama3()
    own.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), behavior="isolated", invert=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    own.post_processor = processors.ByteLevel(trim_offsets=False)
    return own


def gpt2() -> Tokenizer:
    """GPT-2's own expression, with a space in front; tokens that take spaces along."""
    own = llama3()
    own.add_special_tokens([AddedToken("<x>", lstrip=True, normalized=False), AddedToken("<y>", rstrip=True, normalized=False)])
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return own


def llama2(legacy: bool = False) -> Tokenizer:
    """Llama 2's file: byte fallback, unknown ones fused; older ones replace spaces while they normalize."""
    own = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trained = ["<unk>", "<s>", "</s>", *_bytes()]
    own.train_from_iterator(SENTENCES[:4], trainers.BpeTrainer(vocab_size=420, special_tokens=trained, show_progress=False))
    about = json.loads(own.to_str())
    about["added_tokens"] = about["added_tokens"][:3]
    about["model"]["unk_token"] = "<unk>" if legacy else None
    own = Tokenizer.from_str(json.dumps(about))
    if legacy:
        own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        own.pre_tokenizer = None
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return own


def unknown(fused: bool) -> Tokenizer:
    """BPE without bytes: what is unknown is one token, or as many as there are characters."""
    about = json.loads(llama2().to_str())
    about["model"].update(byte_fallback=False, fuse_unk=fused, unk_token="<unk>")
    about["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return Tokenizer.from_str(json.dumps(about))


def ties() -> Tokenizer:
    """Scores of which many sums are equal, and one that an unknown token almost reaches."""
    scores = {"<unk>": 0, "a": -1, "b": -1, "ab": -2, "ba": -2, "aba": -3, "abab": -4, "y": 5, "xy": -12, "▁": -1, "▁a": -2}
    own = Tokenizer(models.Unigram([(piece, float(score)) for piece, score in scores.items()], unk_id=0, byte_fallback=False))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    return own


def added() -> Tokenizer:
    """Added tokens with every option, over a normalizer that changes them."""
    own = Tokenizer(models.Unigram(_pieces(["<unk>"]), unk_id=0, byte_fallback=False))
    own.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    own.add_tokens(
        [
            AddedToken("Dog", single_word=True, normalized=True),
            AddedToken("kite", lstrip=True, normalized=False),
            AddedToken("red kite", rstrip=True, normalized=False),
            AddedToken("ﬁsh", normalized=True),
            AddedToken("<x>", normalized=False, special=True, lstrip=True, rstrip=True),
            AddedToken("sea", single_word=True, normalized=False, lstrip=True),
        ]
    )
    own.post_processor = processors.BertProcessing(("<x>", 7), ("<unk>", 0))
    return own


SHAPES: dict[str, Callable[[], Tokenizer]] = {
    "t5": t5,
    "umt5": umt5,
    "clip": clip,
    "older-clip": lambda: clip(special=False),
    "llama3": llama3,
    "qwen2": qwen2,
    "gpt2": gpt2,
    "llama2": llama2,
    "older-llama2": lambda: llama2(legacy=True),
    "unknown": lambda: unknown(fused=False),
    "fused": lambda: unknown(fused=True),
    "ties": ties,
    "added": added,
}


def variants(kind: str) -> Iterator[dict[str, Any]]:
    """Other options of components, as files: of Metaspace, Split and the normal forms."""
    base = json.loads(SHAPES["added"]().to_str())
    if kind == "metaspace":
        for scheme in ("always", "first", "never"):
            for split in (True, False):
                for replacement in ("▁", "_"):
                    yield {
                        **base,
                        "pre_tokenizer": {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": split},
                    }
        inner = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
        yield {**base, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, inner]}}
    if kind == "split":
        for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            for invert in (True, False):
                for pattern in ({"String": " "}, {"Regex": CLIP}, {"Regex": r"\s+"}):
                    yield {**base, "pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}}
    if kind == "normal":
        for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt"):
            yield {**base, "normalizer": {"type": form}, "added_tokens": []}


def saved(tokenizer: Tokenizer | dict[str, Any], path: Path, length: int = 24, **padding: Any) -> Tokenizer:
    """As `vditc compile` writes it: padded and cut to `length`, where that is not 0."""
    own = (
        Tokenizer.from_str(tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)) if isinstance(tokenizer, dict) else tokenizer
    )
    if length:
        own.enable_truncation(max_length=length, direction=padding.pop("cut", "right"))
        own.enable_padding(**({"length": length, "pad_id": 0, "pad_token": "<pad>"} | padding))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json.loads(own.to_str()), ensure_ascii=False, sort_keys=True) + "\n")
    return Tokenizer.from_file(str(path))
