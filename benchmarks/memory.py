"""Measures what engines need in memory and compares it with the estimate of `vditc.memory`. Builds with TensorRT-RTX, without a GPU.

    python benchmarks/memory.py [--case CASE] [--json] [--out FILE] [--list]

Activations and weights are what the builder's log says for the largest shapes, the builder's memory is the peak RSS of its process;
for ONNX Runtime, what one step adds to the peak RSS of a process. Weights are rounded to nearest. `wan-12` is Wan 2.1 1.3B cut to
12 blocks, its weights random.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import MODEL, options, save, with_json

from vditc.adapter import ModelAdapter
from vditc.calibration import Calibration, Kept, LayerCalibration
from vditc.export.adapters.registry import adapter_for
from vditc.export.stage import export_model
from vditc.graph_passes.stage import lower
from vditc.memory import Memory, model_memory
from vditc.model_dir import ModelDir
from vditc.profile import Profile
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_process import run_build, shapes
from vditc.runtimes.trt_worker import peak_rss_bytes
from vditc.scheme import quantize_weight
from vditc.target import Target

RECIPES = ("fp16", "w8a8", "w4a16")
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 12}  # the rest as in 1.3B, the class's default
CASES = {  # model, profiles
    "digits": ("batch=2,frames=8", "batch=2,frames=32"),
    "wan-12": ("batch=1,480p81", "batch=2,480p81,frames=17f"),
    "digits-cpu": ("batch=2,frames=8", "batch=2,frames=32"),
}


def wan(folder: Path) -> Path:
    """Write the cut model in float16."""
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    if not folder.exists():
        WanTransformer3DModel(**WAN).half().save_pretrained(folder / "transformer")
    return folder


def rounded(source: ModelDir, adapter: ModelAdapter, recipe: Recipe) -> Calibration:
    """Every layer as the recipe says, without calibration."""
    layers: dict[str, LayerCalibration] = {}
    kept: dict[str, Kept] = {}
    roles = adapter.layer_roles(source)
    for name, rule in recipe.assign(roles).items():
        entry, scheme = source.weights[f"{name}.weight"], rule.scheme
        if scheme is None:
            kept[name] = Kept(role=roles[name], reason=rule.keep or "", shape=entry.shape)
        else:
            weight = quantize_weight(entry.read(), scheme.weight, scale_dtype=np.float32 if scheme.activation else np.float16)
            layers[name] = LayerCalibration(role=roles[name], scheme=scheme, weight=weight)
    return Calibration(
        model_class=source.model_class,
        model_digest=source.digest,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        method="rtn",
        schedule=None,
        guidance_scale=None,
        layers=layers,
        kept=kept,
        statistics={},
    )


def rows(case: str, work: Path) -> Iterator[dict[str, Any]]:
    """One row for every recipe and profile."""
    source = ModelDir.open(wan(work / "wan") if case == "wan-12" else MODEL)
    adapter = adapter_for(source)
    target = Target.load("cpu" if case == "digits-cpu" else "rtx-ada")
    for name in RECIPES:
        recipe, folder = Recipe.load(name), work / case / name
        folder.mkdir(parents=True)
        model, lowered = folder / "model.onnx", folder / "lowered.onnx"
        export_model(source=source, adapter=adapter, calibration=rounded(source, adapter, recipe), out=model, progress=SILENT)
        lower(model=model, target=target, out=lowered, progress=SILENT)
        schemes = {layer: rule.scheme for layer, rule in recipe.assign(adapter.layer_roles(source)).items()}
        for text in CASES[case]:
            profile = Profile.parse(text, adapter.default_profile(source), adapter.sizes(source))
            estimated = model_memory(source, adapter, schemes, profile, target)
            measured = stepped(model, profile) if case == "digits-cpu" else built(lowered, target, profile, folder)
            yield {"recipe": name, "profile": profile.to_json(), **compared(measured, estimated)}


def built(lowered: Path, target: Target, profile: Profile, work: Path) -> dict[str, int]:
    """Of an engine; whether its precision landed is not asked here."""
    names = [arch.upper().replace("_", "") for arch in target.arch]
    request = BuildRequest(
        module="tensorrt_rtx",
        lowered=str(lowered),
        plan=str(work / "model.plan"),
        shapes=shapes(input_specs(lowered), profile),
        compute_capabilities=names,
    )
    result = run_build(request, work)
    assert result.weight_bytes is not None and result.activation_bytes is not None, "the builder's log has no figures"
    return {"weights": result.weight_bytes, "activations": result.activation_bytes, "builder": result.peak_rss_bytes}


def stepped(model: Path, profile: Profile) -> dict[str, int]:
    """Of one step in ONNX Runtime, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--step", str(model), json.dumps(profile.largest)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"activations": int(done.stdout)}


def step(model: Path, sizes: dict[str, int]) -> None:
    """Print how much one step adds to the peak RSS."""
    runner, random = OnnxRuntimeModel(model), np.random.default_rng(0)
    feeds = {spec.name: spec.example(sizes, random) for spec in input_specs(model)}
    before = peak_rss_bytes()
    runner(feeds, 0)
    print(peak_rss_bytes() - before)


def compared(measured: dict[str, int], estimated: Memory) -> dict[str, Any]:
    """Measured and estimated bytes, and how much more was estimated."""
    said = estimated.to_json()
    return {
        "measured": measured,
        "estimated": {name: said[name] for name in measured},
        "error": {name: round(said[name] / value - 1, 3) for name, value in measured.items()},
    }


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        step(Path(sys.argv[2]), json.loads(sys.argv[3]))
        return
    ask = with_json(options(__doc__, CASES))
    args = ask.parse_args()
    if args.list:
        print("\n".join(CASES))
        return
    found = []
    with tempfile.TemporaryDirectory() as work:
        for case in args.case or CASES:
            for row in rows(case, Path(work)):
                row = {"bench": "memory", "case": case, **row}
                print(json.dumps(row) if args.json else f"{case} {row['recipe']} {row['profile']}: error {row['error']}", flush=True)
                found.append(row)
    save(args.out, found)


if __name__ == "__main__":
    main()
