"""How a pipeline class turns prompts into what its transformer is told: one TOML file for each kind of pipeline.

pipelines = ["CogVideoXPipeline"]     # of model_index.json
fps = 8                               # of a clip, for players

[sampling]                            # the pipeline's own, for a model without sampling.json
steps = 50
guidance_scale = 6.0

[[text]]                              # one for each text encoder
encoder = "text_encoder"              # folders of the pipeline
tokenizer = "tokenizer"
max_length = 226                      # tokens, to which prompts are padded and cut
max_length_key = "max_text_seq_length"    # of transformer/config.json, which knows better
clean = ["ftfy", "html", "whitespace"]    # what is done to a prompt first (vditc.prompt_cleaning)
template = "... {}"                   # the encoder reads the prompt in it
template_tokens = 95                  # of its beginning, in front of the tokens that max_length counts; what is encoded of them is dropped
skip_layers = 2                       # the state is what the last two blocks of the encoder would be given
masked = true                         # the encoder is told which tokens are padding
zero_padding = true                   # vectors of padding are zero afterwards
empty_flag = "..."                    # of model_index.json: where it is true, an empty prompt has no tokens at all
input = "encoder_hidden_states"       # of the transformer
mask_input = "encoder_attention_mask"     # of the transformer, where it takes the mask
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.files import write_text
from vditc.prompt_cleaning import STEPS
from vditc.toml_data import Table

FILE = "conditioner.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInput:
    """One text encoder of a pipeline; see the module."""

    encoder: str
    tokenizer: str
    max_length: int
    clean: tuple[str, ...]
    masked: bool
    zero_padding: bool
    empty_hidden: bool
    input: str
    mask_input: str | None
    template: str = "{}"
    template_tokens: int = 0
    skip_layers: int = 0

    @property
    def tokens(self) -> int:
        """To which a prompt in its template is padded and cut."""
        return self.template_tokens + self.max_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioner:
    """What a TOML file says, for one model: keys of its configuration are looked up."""

    name: str
    pipeline: str
    fps: int
    steps: int
    guidance_scale: float
    text: tuple[TextInput, ...]

    def save(self, folder: Path) -> None:
        """Write `conditioner.json`."""
        write_text(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; InputError for a file that says something else."""
        data = read_json(folder / FILE)
        try:
            text = tuple(TextInput(**{**t, "clean": tuple(t["clean"])}) for t in data.pop("text"))
            return cls(text=text, **data)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                found=f"wrong keys ({error})", wanted="what vditc writes", where=str(folder / FILE), fix="compile the bundle again"
            ) from error


def conditioner_for(model_dir: Path, config: Mapping[str, Any]) -> Conditioner | None:
    """Of a model directory, whose transformer has this config.json; None for a pipeline class that no file names, or without one."""
    index = read_json(model_dir / "model_index.json") if (model_dir / "model_index.json").exists() else {}
    pipeline = index.get("_class_name")
    for path in sorted(Path(str(files("vditc") / "conditioners")).glob("*.toml")):
        table = Table.load(path)
        if pipeline in table.strings("pipelines"):
            return _parse(table, path.stem, str(pipeline), index, config)
    return None


def known_pipelines() -> tuple[str, ...]:
    """Pipeline classes that a file names."""
    paths = sorted(Path(str(files("vditc") / "conditioners")).glob("*.toml"))
    return tuple(name for path in paths for name in Table.load(path).strings("pipelines"))


def _parse(table: Table, name: str, pipeline: str, index: Mapping[str, Any], config: Mapping[str, Any]) -> Conditioner:
    sampling = table.table("sampling")
    if sampling is None:
        raise InputError(found="no [sampling]", wanted="steps and guidance_scale", where=table.where, fix="add the table")
    text = tuple(_text(t, index, config) for t in table.tables("text"))
    found = Conditioner(
        name=name,
        pipeline=pipeline,
        fps=table.need("fps", int),
        steps=sampling.need("steps", int),
        guidance_scale=sampling.need("guidance_scale", float),
        text=text,
    )
    sampling.done()
    table.done()
    return found


def _text(table: Table, index: Mapping[str, Any], config: Mapping[str, Any]) -> TextInput:
    key, flag = table.take("max_length_key", str), table.take("empty_flag", str)
    length, clean = table.need("max_length", int), table.strings("clean")
    if unknown := sorted(set(clean) - set(STEPS)):
        raise InputError(found=f"clean = {unknown}", wanted=f"some of {', '.join(STEPS)}", where=table.where, fix="correct the list")
    template = table.take("template", str) or "{}"
    if template.count("{}") != 1:
        raise InputError(found=f"template = {template!r}", wanted="{} once, for the prompt", where=table.where, fix="correct it")
    found = TextInput(
        encoder=table.need("encoder", str),
        tokenizer=table.need("tokenizer", str),
        max_length=int(config.get(key, length)) if key else length,
        clean=clean,
        masked=bool(table.take("masked", bool, False)),
        zero_padding=bool(table.take("zero_padding", bool, False)),
        empty_hidden=bool(flag and index.get(flag)),
        input=table.need("input", str),
        mask_input=table.take("mask_input", str),
        template=template,
        template_tokens=int(table.take("template_tokens", int) or 0),
        skip_layers=int(table.take("skip_layers", int) or 0),
    )
    table.done()
    return found
