"""What `vditc inspect MODEL_DIR` shows: the family, the sizes that the model takes, and what engines will need in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vditc.build_memory import gigabytes
from vditc.cli.app import console
from vditc.errors import InputError
from vditc.memory import model_memory
from vditc.profile import Profile
from vditc.recipe import Recipe
from vditc.target import Target

RECIPES = ("fp16", "w8a8", "w4a16")
TARGET = "rtx-ada"  # for its types: the estimate asks no more of it


def is_model(path: Path) -> bool:
    """Whether this is a model directory, not a bundle."""
    return not (path / "manifest.json").exists() and ((path / "model_index.json").exists() or (path / "transformer").is_dir())


def model_facts(path: Path) -> dict[str, Any]:
    """Plain data; estimates in bytes, with the batch of the model's own profile. InputError for a directory that is no model."""
    from vditc.export.adapters.registry import adapter_for
    from vditc.model_dir import ModelDir

    source = ModelDir.open(path, "transformer", hash_now=False)  # two experts are of one shape
    adapter = adapter_for(source)
    sizes, default = adapter.sizes(source), adapter.default_profile(source)
    roles, target = adapter.layer_roles(source), Target.load(TARGET)

    def memory(recipe: str, profile: Profile) -> dict[str, Any]:
        try:
            schemes = {name: rule.scheme for name, rule in Recipe.load(recipe).assign(roles).items()}
            return model_memory(source, adapter, schemes, profile, target).to_json()
        except InputError as error:  # a recipe that is not for this family
            return {"impossible": f"{error.found}; wanted {error.wanted}"}

    clips: dict[str, Any] = {}
    for name in ("default", *sizes.presets):
        try:
            profile = default if name == "default" else Profile.parse(name, default, sizes)
        except InputError as error:
            clips[name] = {"impossible": f"{error.found}; wanted {error.wanted}"}
            continue
        largest = profile.largest
        clips[name] = {
            "sizes": {axis: f"{sizes.axes[axis].units(size)}{sizes.axes[axis].suffix}" for axis, size in largest.items()},
            "steps": largest,
            "tokens": sizes.tokens(largest),
            "memory": {recipe: memory(recipe, profile) for recipe in RECIPES},
        }
    return {
        "model": source.model_class,
        "family": adapter.name,
        "what": adapter.description,
        "parts": list(source.parts),
        "weights": source.weight_count,
        "inputs": [{"name": i.name, "dtype": i.dtype, "dims": list(i.dims), "fill": i.fill} for i in adapter.inputs(source)],
        "axes": {name: {"takes": axis.words, **axis.to_json()} for name, axis in sizes.axes.items()},
        "clips": clips,
    }


def show_model(path: Path, facts: dict[str, Any]) -> None:
    """The facts, for people."""
    summary = Table(title=str(path), show_header=False, title_justify="left")
    summary.add_row("model", f"{facts['model']}, {facts['weights'] / 1e6:.2f} M weights in {' and '.join(facts['parts'][:1])}")
    summary.add_row("family", f"{facts['family']}: {facts['what']}")
    if len(facts["parts"]) > 1:
        summary.add_row("transformers", ", ".join(facts["parts"]))
    for name, axis in facts["axes"].items():
        summary.add_row(name, axis["takes"])
    console.print(summary)
    inputs = Table("input", "type", "dims", "values", title="inputs", title_justify="left")
    for i in facts["inputs"]:
        inputs.add_row(i["name"], i["dtype"], escape(f"[{', '.join(map(str, i['dims']))}]"), _values(i["fill"]))
    console.print(inputs)
    clips = Table("profile", "largest sizes", "tokens", *RECIPES, title="memory: weights + activations", title_justify="left")
    for name, clip in facts["clips"].items():
        if "impossible" in clip:
            clips.add_row(name, clip["impossible"], "-", *["-"] * len(RECIPES))
            continue
        needs = (clip["memory"][r] for r in RECIPES)
        clips.add_row(
            name,
            "\n".join(f"{axis}={size}" for axis, size in clip["sizes"].items()),
            str(clip["tokens"]),
            *(m["impossible"] if "impossible" in m else _needs({k: gigabytes(v) for k, v in m.items()}) for m in needs),
        )
    console.print(clips)
    console.print("Estimates (vditc.memory); build is the memory of the machine that builds the engine.", markup=False, highlight=False)


def _values(fill: str | float) -> str:
    named = {"normal": "latents or encodings", "timestep": "0 to 1000", "mask": "1 of tokens that count, else 0", "ids": "tokens"}
    return named[fill] if isinstance(fill, str) else f"{fill:g} unless told"


def _needs(m: dict[str, str]) -> str:
    return f"{m['weights']} + {m['activations']}\n= {m['total']}\nbuild: {m['builder']}"
