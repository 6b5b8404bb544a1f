from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_wan, tiny_clip, tiny_llama
from tolerances import TEXT_VECTORS

from vditc.checkpoint import read_json
from vditc.conditioner import Conditioner, conditioner_for
from vditc.errors import InputError
from vditc.export.parts.encode import open_torch_part
from vditc.export.parts.families.llama import Llama
from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import open_part
from vditc.pipeline.parts import PartChoice, PipelineParts
from vditc.prompt_cleaning import clean_prompt, installed_steps
from vditc.runtimes.parts.prompt_tokens import PromptTokens
from vditc.runtimes.parts.text_encoder import TextEncoder

PROMPTS = ["a red kite over the sea", "", "Two &amp;amp; dogs\n  in&nbsp;the  snow ", "the wind " * 300]  # the last one is cut
SAVE: dict[str, Callable[[Path], Path]] = {"wan": save_tiny_wan, "cogvideox": save_tiny_cogvideox}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(root / name) for name, save in SAVE.items()}


def _parts(folder: Path) -> PipelineParts:
    return PipelineParts.open(folder, read_json(folder / "transformer" / "config.json"), PartChoice())


def _pipeline(folder: Path) -> Any:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # it prints what is cut, with all its padding
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", SAVE)
def test_prompts_are_encoded_as_the_pipeline_does(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    pipe, parts = _pipeline(folders[name]), _parts(folders[name])
    assert parts.conditioner is not None
    (text,) = parts.conditioner.text
    with torch.no_grad():
        want, empty = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True, max_sequence_length=text.max_length)
    encoder = parts.text_encoder(tmp_path)
    assert encoder is not None
    got = encoder.inputs([*PROMPTS, ""])
    assert list(got) == ["encoder_hidden_states"]
    np.testing.assert_allclose(got["encoder_hidden_states"][:-1], want.numpy(), atol=TEXT_VECTORS)
    np.testing.assert_allclose(got["encoder_hidden_states"][-1], empty[0].numpy(), atol=TEXT_VECTORS)
    one_by_one = dataclasses.replace(parts.conditioner, text=(text,))
    alone = TextEncoder(one_by_one, encoder.tokens, encoder.open_encoder).inputs(PROMPTS)  # prompts of their own lengths
    np.testing.assert_allclose(alone["encoder_hidden_states"], want.numpy(), atol=TEXT_VECTORS)


def test_a_language_model_and_a_second_encoder(tmp_path: Path) -> None:
    """A template, a state from the middle, one vector of the other encoder."""
    folder = save_tiny_hunyuan_video(tmp_path / "model")
    pipe, parts = _pipeline(folder), _parts(folder)
    with torch.no_grad():
        hidden, pooled, mask = pipe.encode_prompt(PROMPTS)
    encoder = parts.text_encoder(tmp_path)
    assert encoder is not None
    for batch in (16, 1):
        encoder.batch = batch
        got = encoder.inputs(PROMPTS)
        assert list(got) == ["encoder_hidden_states", "encoder_attention_mask", "pooled_projections"]
        assert np.array_equal(got["encoder_attention_mask"], mask.numpy())
        assert 256 == mask[3].sum() > mask[0].sum() > mask[1].sum() > 0
        np.testing.assert_allclose(got["encoder_hidden_states"], hidden.numpy(), atol=TEXT_VECTORS)
        np.testing.assert_allclose(got["pooled_projections"], pooled.numpy(), atol=TEXT_VECTORS)
    assert parts.conditioner is not None
    parts.conditioner.save(tmp_path)
    assert Conditioner.load(tmp_path) == parts.conditioner
    memory = {name: part.weight_count for name, part in parts.encoders.items()}
    assert memory["text_encoder"] < sum(p.numel() for p in pipe.text_encoder.parameters()) * 0.7  # not the two last blocks


@pytest.mark.parametrize("skip", [0, 2])
def test_a_hidden_state_of_a_language_model(skip: int, tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "text_encoder")
    part = Llama(open_part(tmp_path, "text_encoder"), skip, 16)
    ids, mask = torch.randint(0, 190, (2, 16)), torch.ones(2, 16, dtype=torch.int64)
    mask[1, 9:] = 0
    with torch.no_grad():
        want = model(ids, mask, output_hidden_states=True).hidden_states[-1 - skip].numpy()
    with open_torch_part(part) as run:
        got = run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["hidden"]
    np.testing.assert_allclose(got, want, atol=TEXT_VECTORS)
    with pytest.raises(InputError, match="found 4 blocks; wanted more than the 4 that are skipped"):
        Llama(part.source, 4)


@pytest.mark.parametrize("end", [2, 61])
def test_where_a_prompt_ends(end: int, tmp_path: Path) -> None:
    """The highest token for files that call 2 the end, as those of the first CLIP do, else the first end; with names of older files."""
    model = tiny_clip(eos_token_id=end, bos_token_id=0, pad_token_id=1)
    model.save_pretrained(tmp_path / "text_encoder_2")
    path = tmp_path / "text_encoder_2" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    part = part_for(open_part(tmp_path, "text_encoder_2"))
    ids = torch.tensor([[0, 5, 2, 62, 61, 61], [0, 61, 9, 61, 3, 2]])
    with torch.no_grad():
        want = model(ids).pooler_output.numpy()
    with open_torch_part(part) as run:
        got = run({"input_ids": ids.numpy(), "attention_mask": np.ones((2, 6), np.int64)})["pooled"]
    np.testing.assert_allclose(got, want, atol=TEXT_VECTORS)
    with pytest.raises(InputError, match="wanted at most 77 tokens"):
        type(part)(part.source, 0, 78)  # type: ignore[call-arg]


def test_blocks_are_skipped_by_who_can(folders: dict[str, Path]) -> None:
    parts = _parts(folders["wan"])
    assert parts.conditioner is not None
    with pytest.raises(InputError, match="a UMT5EncoderModel of which 2 blocks are skipped"):
        parts.encoders["text_encoder"].for_prompts(dataclasses.replace(parts.conditioner.text[0], skip_layers=2))


def test_tokens_are_those_of_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    from vditc.export.parts.tokenizers import save_tokenizer

    own = _pipeline(folders["wan"]).tokenizer
    save_tokenizer(folders["wan"], "tokenizer", 16, tmp_path)
    want = own(PROMPTS, padding="max_length", max_length=16, truncation=True, return_attention_mask=True)
    ids, mask = PromptTokens(tmp_path)(PROMPTS)
    assert ids.tolist() == want["input_ids"] and mask.tolist() == want["attention_mask"]
    assert ids.shape == (4, 16) and mask[1].sum() == 1 and ids[3, -1] == own.eos_token_id


def test_a_mask_goes_along_where_the_transformer_takes_one(folders: dict[str, Path], tmp_path: Path) -> None:
    parts = _parts(folders["cogvideox"])
    assert parts.conditioner is not None
    text = dataclasses.replace(parts.conditioner.text[0], mask_input="encoder_attention_mask", empty_hidden=True)
    encoder = parts.text_encoder(tmp_path)
    assert encoder is not None
    encoder.conditioner = dataclasses.replace(parts.conditioner, text=(text,))
    got = encoder.inputs(["a cat", ""])
    assert got["encoder_attention_mask"].sum(1).tolist()[1] == 0 < got["encoder_attention_mask"][0].sum() < 12


def test_an_encoder_larger_than_memory_reads_block_by_block(folders: dict[str, Path]) -> None:
    from vditc.export.parts.encode import loaded

    part = _parts(folders["wan"]).encoders["text_encoder"]
    whole, streamed = loaded(part), loaded(part, memory=0)
    held = sum(p.numel() for p in streamed.parameters())
    assert held < sum(p.numel() for p in whole.parameters()) // 2
    feeds = {"input_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
    (graph,) = part.graphs()
    with torch.no_grad():
        assert torch.equal(part.forward(whole, graph, feeds)[0], part.forward(streamed, graph, feeds)[0])


def test_unknown_pipelines_are_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(folders["wan"], tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "WanImageToVideoPipeline"}))
    parts = _parts(tmp_path / "model")
    assert parts.conditioner is None and parts.vae is not None
    assert parts.notes[-1].startswith("prompts are not encoded: pipelines that vditc encodes for are")


def test_the_conditioner_survives_saving(folders: dict[str, Path], tmp_path: Path) -> None:
    found = conditioner_for(folders["cogvideox"], read_json(folders["cogvideox"] / "transformer" / "config.json"))
    assert found is not None and found.text[0].max_length == 12  # of the transformer's config, not the 226 of published models
    found.save(tmp_path)
    assert Conditioner.load(tmp_path) == found
    (tmp_path / "conditioner.json").write_text('{"text": [{}]}')
    with pytest.raises(InputError, match="wrong keys"):
        Conditioner.load(tmp_path)


@pytest.mark.parametrize(
    ("steps", "want"),
    [((), " a &amp;amp;\n b "), (("html",), "a &\n b"), (("whitespace",), "a &amp;amp; b"), (("html", "whitespace"), "a & b")],
)
def test_cleaning(steps: tuple[str, ...], want: str) -> None:
    assert clean_prompt(" a &amp;amp;\n b ", steps) == want


def test_ftfy_is_not_left_out_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installed_steps(("ftfy", "html")) == ("html",)
    with pytest.raises(InputError, match="ftfy is not installed"):
        clean_prompt("a", ("ftfy",))


def test_words_of_options_are_checked(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="--text-encoder-dtype: found w4; wanted model or w8 or fp8"):
        PartChoice(text_encoder="w4").check()
    with pytest.raises(InputError, match="--parts"):
        PartChoice(parts="vae").check()


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted a tokenizer"):
        PromptTokens(tmp_path)
