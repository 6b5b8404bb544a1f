"""Prompts become the conditionings that Python makes of them, bit for bit where graphs give the same."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_char_p, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_bundle import LATENTS, SPECS, save_bundle
from cpp_library import BundleInfo, Library, LibraryError
from cpp_texts import TEXT, encode, failure, listed_again, null_graph, save_texts, tokens_of
from cpp_tokenizers import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vditc.adapter import InputSpec
from vditc.conditioner import Conditioner, TextInput
from vditc.conditioning import Conditioning
from vditc.prompt_cleaning import clean_prompt
from vditc.runtimes.parts.prompt_tokens import PromptTokens
from vditc.runtimes.parts.text_encoder import TextEncoder

Array = npt.NDArray[Any]
PROMPTS = ("a red kite &amp;amp;\n over the sea", "", "两只狗 run  in the snow " * 9)
TEMPLATE = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
MASK = InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask")
POOLED = InputSpec("pooled_projections", "float32", ("batch", 5))
KINDS: dict[str, tuple[TextInput, ...]] = {
    "plain": (dataclasses.replace(TEXT, masked=False, zero_padding=False),),
    "zero": (dataclasses.replace(TEXT, clean=("html", "whitespace")),),
    "zero-unmasked": (dataclasses.replace(TEXT, masked=False),),
    "hidden": (dataclasses.replace(TEXT, zero_padding=False, empty_hidden=True, mask_input=MASK.name),),
    "template": (
        dataclasses.replace(TEXT, tokenizer="llama", zero_padding=False, mask_input=MASK.name, template=TEMPLATE, template_tokens=5),
        dataclasses.replace(TEXT, encoder="text_encoder_2", tokenizer="clip", input=POOLED.name, masked=False, zero_padding=False),
    ),
    "template-zero": (dataclasses.replace(TEXT, tokenizer="llama", mask_input=MASK.name, template=TEMPLATE, template_tokens=3),),
}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def _specs(texts: Sequence[TextInput]) -> tuple[InputSpec, ...]:
    masks = (MASK,) if any(t.mask_input for t in texts) else ()
    return (*SPECS[:3], *masks, *((POOLED,) if len(texts) > 1 else ()), SPECS[3])


def _save(root: Path, texts: Sequence[TextInput]) -> Path:
    known = {"tokenizer": "umt5", "llama": "llama3", "clip": "clip"}
    return save_texts(root, texts, {t.tokenizer: SHAPES[known[t.tokenizer]]() for t in texts}, _specs(texts))


def _theirs(root: Path, prompts: Sequence[str], negative: str) -> Conditioning:
    """As vditc.pipeline.components encodes, with the graphs of backend "null"."""
    folder = root / "components"

    @contextlib.contextmanager
    def opened(encoder: str) -> Iterator[Any]:
        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            ids = feeds["input_ids"]
            shape = (1, 5) if encoder == "text_encoder_2" else (1, ids.shape[1], 8)
            return {"": null_graph(list(feeds.values()), shape)}

        yield run

    encoder = TextEncoder(Conditioner.load(folder), lambda name: PromptTokens(folder / name), opened)
    every = encoder.inputs([*dict.fromkeys(prompts), negative])
    rows = [list(dict.fromkeys(prompts)).index(p) for p in prompts]
    return Conditioning(
        prompts=tuple(prompts),
        seeds=tuple(range(len(prompts))),
        latent_shape=LATENTS,
        inputs={n: a[rows] for n, a in every.items()},
        empty={n: a[-1:] for n, a in every.items()},
    )


@contextlib.contextmanager
def _clips(library: Library, count: int) -> Iterator[c_void_p]:
    handle = library.made("conditioning_create", (c_int64 * 4)(*LATENTS), (c_uint64 * count)(*range(count)), c_uint64(count))
    try:
        yield handle
    finally:
        library("conditioning_destroy", handle)


def _seen(library: Library, bundle: c_void_p, clips: c_void_p, guidance: float) -> list[dict[str, Array]]:
    """What a model is told at the first step of every clip and branch."""
    seen: list[dict[str, Array]] = []

    def predict(feeds: Mapping[str, Array], expert: int, step: int) -> Array:
        if step == 0:
            seen.append(dict(feeds))
        return np.zeros((1, *LATENTS), np.float32)

    with library.session(bundle, predict=predict, passes=2, guidance=guidance) as session:
        library.sample(session, clips, LATENTS)
    return seen


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_conditionings_are_pythons(library: Library, tmp_path: Path, kind: str, guidance: float) -> None:
    root, texts = _save(tmp_path / "b", KINDS[kind]), KINDS[kind]
    prompts, negative = (*PROMPTS, PROMPTS[0]), "blurry"
    want = _theirs(root, prompts, negative)
    with library.bundle(root) as bundle, library.session(bundle) as session, _clips(library, len(prompts)) as clips:
        encode(library, session, prompts, [negative] * len(prompts), clips)
        seen = _seen(library, bundle, clips, guidance)
    branches = 1 if guidance == 1.0 else 2
    assert len(seen) == branches * len(prompts)
    for i in range(len(prompts)):
        expected = want.clips([i], _specs(texts))
        for branch, given in zip((expected.prompted, expected.unprompted), seen[i * branches : (i + 1) * branches], strict=False):
            for name in want.inputs:
                assert given[name].tobytes() == np.ascontiguousarray(branch[name]).tobytes(), (name, i)
    if kind != "plain":  # or the comparison would see nothing
        name = texts[0].input
        assert not np.array_equal(want.inputs[name][0], want.inputs[name][1])


def test_a_negative_for_every_clip(library: Library, tmp_path: Path) -> None:
    root = _save(tmp_path / "b", KINDS["zero"])
    with library.bundle(root) as bundle, library.session(bundle) as session, _clips(library, 2) as clips:
        for negatives in (["dark", "blurry"], None):
            encode(library, session, PROMPTS[:2], negatives, clips)
            seen = _seen(library, bundle, clips, 3.0)
            for i, negative in enumerate(negatives or ["", ""]):
                want = _theirs(root, PROMPTS[:1], negative).empty[TEXT.input]
                assert np.array_equal(seen[2 * i + 1][TEXT.input], want), negative


def test_tokens_are_those_of_the_encoder(library: Library, tmp_path: Path) -> None:
    root = _save(tmp_path / "b", KINDS["template"])
    own = Tokenizer.from_file(str(root / "components" / "llama" / "tokenizer.json"))
    with library.bundle(root) as bundle:
        want = own.encode(TEMPLATE.replace("{}", "a cat"))
        assert tokens_of(library, bundle, "a cat") == tokens_of(library, bundle, "a cat", TEXT.input) == (want.ids, want.attention_mask)
        assert tokens_of(library, bundle, "a cat", POOLED.name)[0] != want.ids
        assert failure(library, "bundle_tokenize", bundle, b"a", None, None, None, c_uint64(0), None).status == "VDITC_ERROR_SHORT_BUFFER"
        assert failure(library, "bundle_tokenize", bundle, None, None, None, None, c_uint64(0), None).status == "VDITC_ERROR_ARGUMENT"


def _letters() -> Tokenizer:
    """A token for every byte, so that tokens show what a prompt is cleaned to."""
    own = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    return own


def _cleaner(library: Library, root: Path, steps: tuple[str, ...]) -> Any:
    save_texts(root, [dataclasses.replace(TEXT, clean=steps)], {"tokenizer": _letters()}, length=0)
    own = Tokenizer.from_file(str(root / "components" / "tokenizer" / "tokenizer.json"))
    return lambda bundle, prompt: own.decode(tokens_of(library, bundle, prompt)[0], skip_special_tokens=False)


CLEANED = (
    " a \t\n b\x1c\x1f\u2003c\u00a0", "&amp;amp;lt; &notit; &notin; &NotEqualTilde; &am &#38;&#x26;#38; &#0; &#x80;",
    "&#xD800; &#11; &#xfffe; &ampa &AMP;&Eacute;&EACUTE; &unknown; &;&#;&#x; &#99999999999; x&lt", "", "&nbsp;x&nbsp;",
    "&CounterClockwiseContourIntegral;&ngeqslant;",
)  # fmt: skip


@pytest.mark.parametrize("steps", [("whitespace",), ("html",), ("html", "whitespace"), ("whitespace", "html")])
def test_cleaning_is_pythons(library: Library, tmp_path: Path, steps: tuple[str, ...]) -> None:
    cleaned = _cleaner(library, tmp_path / "b", steps)
    with library.bundle(tmp_path / "b") as bundle:
        for prompt in CLEANED:
            assert cleaned(bundle, prompt) == clean_prompt(prompt, steps), prompt


FTFY = {  # what ftfy 6.3.1 makes of them
    "L’été — « très joli »…": "L'été — « très joli »…",
    "“ﬁne” ŉ Ǆ ﬅ": '"fine" \'n DŽ ſt',
    "ＬＯＵＤ　ｶﾞ ￥": "LOUD ガ ¥",
    "a\r\nb\rc\u2028d\u2029e": "a\nb\nc\nd\ne",
    "\x1b[31;1mred\x1b[0m \x07\ufeff\ufffcx\x7f": "red x",
    "e\u0301 &eacute; &EACUTE; &amp;lt; &#233; &#59; &bogus;": "é é É < é &#59; &bogus;",
    "a<b &amp; c\n&amp;": "a<b &amp; c\n&amp;",
    "&amp;\na<b &amp;": "&\na<b &amp;",
    "красный «змей», №5, 100€; Ωμέγα; 红色，“夜”; 👩‍🚀 20°C ½ £5 10×20": 'красный «змей», №5, 100€; Ωμέγα; 红色,"夜"; 👩‍🚀 20°C ½ £5 10×20',
    "Œuvre, São Paulo, Łódź, Příliš žluťoučký kůň, İstanbul, Ærø": "Œuvre, São Paulo, Łódź, Příliš žluťoučký kůň, İstanbul, Ærø",
}
MISREAD = ("sÃ³", "â€œquotedâ€\x9d", "voilÃ  le travail", "Ð¿ÑÐ¸Ð²ÐµÑ‚", "a\x85b", "вЂ™", "√©t√©", "cafÃ©", "â”€â”€", "ä¸€", "β€Ά")


def test_ftfy_is_followed_where_it_does_not_guess(library: Library, tmp_path: Path) -> None:
    cleaned = _cleaner(library, tmp_path / "b", ("ftfy",))
    with library.bundle(tmp_path / "b") as bundle:
        for prompt, want in FTFY.items():
            assert cleaned(bundle, prompt) == want, prompt
        for prompt in MISREAD:
            with pytest.raises(LibraryError, match=r"UNSUPPORTED: prompt: found '.*', which looks misread; wanted text of plain letters"):
                cleaned(bundle, prompt)


def test_ftfy_itself_agrees(library: Library, tmp_path: Path) -> None:
    ftfy = pytest.importorskip("ftfy")
    signs = "".join(
        sorted(
            {bytes([b]).decode(code, "ignore") for code in ("latin-1", "cp1252", "cp1251", "macroman", "cp437") for b in range(128, 256)}
        )
    )
    random = np.random.default_rng(0)
    cleaned = _cleaner(library, tmp_path / "b", ("ftfy",))
    with library.bundle(tmp_path / "b") as bundle:
        for prompt, want in FTFY.items():
            assert ftfy.fix_text(prompt) == want
        for _ in range(3000):
            prompt = "".join(random.choice(list(signs + "abzAZ 0.,!  "), 4))
            with contextlib.suppress(LibraryError):
                assert cleaned(bundle, prompt) == ftfy.fix_text(prompt)


def test_calls_that_cannot_be(library: Library, tmp_path: Path) -> None:
    root = _save(tmp_path / "b", KINDS["zero"])
    texts = (c_char_p * 2)(b"a", b"b")
    with library.bundle(root) as bundle, library.session(bundle) as session, _clips(library, 2) as clips:

        def refused(*arguments: Any) -> str:
            error = failure(library, "session_encode", *arguments)
            return f"{error.status.removeprefix('VDITC_ERROR_')}: {error.message}"

        assert refused(session, texts, None, c_uint64(1), clips).startswith("INPUT: conditioning: found 1 prompts; wanted 2, one a clip")
        assert refused(session, texts, None, c_uint64(0), clips).startswith("ARGUMENT: prompts: found none")
        assert refused(session, None, None, c_uint64(2), clips).startswith("ARGUMENT: prompts: found NULL")
        assert refused(session, (c_char_p * 2)(b"a", None), None, c_uint64(2), clips).startswith("ARGUMENT: prompts: found NULL")
        assert refused(session, texts, (c_char_p * 2)(b"a", None), c_uint64(2), clips).startswith("ARGUMENT: negatives: found NULL")
        assert refused(session, (c_char_p * 2)(b"a", b"\xc3"), None, c_uint64(2), clips).startswith("INPUT: prompt: found byte c3 at 0")
        assert refused(clips, texts, None, c_uint64(2), clips).startswith("HANDLE: session")
        assert refused(session, texts, None, c_uint64(2), session).startswith("HANDLE: conditioning")
        library("session_cancel", session)
        assert refused(session, texts, None, c_uint64(2), clips).startswith("VDITC_CANCELLED")
        with pytest.raises(LibraryError, match="found no encoder_hidden_states"):  # nothing was set
            library.sample(session, clips, LATENTS)
        encode(library, session, ["a", "b"], None, clips)
        assert np.isfinite(library.sample(session, clips, LATENTS)).all()
        with library.session(bundle, predict=lambda feeds, expert, step: feeds["hidden_states"]) as host:
            assert refused(host, texts, None, c_uint64(2), clips).startswith("UNSUPPORTED: bundle")


def test_a_session_at_work_encodes_nothing(library: Library, tmp_path: Path) -> None:
    root = _save(tmp_path / "b", KINDS["zero"])
    inside, seen = threading.Event(), []
    with library.bundle(root) as bundle, library.session(bundle) as session, _clips(library, 1) as clips:
        encode(library, session, ["a"], None, clips)

        def progress(_: Any) -> int:
            if not inside.is_set():
                inside.set()
                seen.append(failure(library, "session_encode", session, (c_char_p * 1)(b"a"), None, c_uint64(1), clips).status)
            return 0

        library.sample(session, clips, LATENTS, progress)
    assert seen == ["VDITC_ERROR_BUSY"]


def test_bundles_without_text_encoders(library: Library, tmp_path: Path) -> None:
    root = save_bundle(tmp_path / "b")
    with library.bundle(root) as bundle, library.session(bundle) as session, _clips(library, 1) as clips:
        assert library.info("bundle_info_get", BundleInfo, bundle).encodes == 0
        with pytest.raises(LibraryError, match=r"NOT_FOUND: bundle .*: found no text encoder; wanted a bundle that was compiled with"):
            encode(library, session, ["a"], None, clips)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"extra": 1}, r"wrong keys \(extra\)"),
        ({"masked": "yes"}, r"wrong keys \(masked\)"),
        ({"template": "no place"}, r"wrong keys \(template\)"),
        ({"template_tokens": 99}, "24 tokens with 99 of the template"),
        ({"input": "other"}, "found a text encoder for other; wanted an input of the transformer"),
        ({"clean": ["spelling"]}, "prompt: found the step spelling; wanted ftfy, html or whitespace"),
        ({"tokenizer": "elsewhere"}, "found no components/elsewhere/tokenizer.json in the manifest"),
    ],
)
def test_conditioners_that_are_damaged(library: Library, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    root = _save(tmp_path / "b", KINDS["zero"])
    path = root / "components" / "conditioner.json"
    about = json.loads(path.read_text())
    about["text"][0].update(changed)
    path.write_text(json.dumps(about))
    listed_again(root)
    with library.bundle(root) as bundle, library.session(bundle) as session, _clips(library, 1) as clips:
        with pytest.raises(LibraryError, match=message):
            encode(library, session, ["a"], None, clips)
        with pytest.raises(LibraryError, match="found no encoder_hidden_states"):
            library.sample(session, clips, LATENTS)
