"""Measures the export of models of published sizes: from a checkpoint of random bfloat16 weights to model.onnx.

    python benchmarks/export.py [--case CASE] [--recipe RECIPE] [--runs N] [--whole] [--work FOLDER] [--keep] [--out FILE] [--list]

Every export is a `vditc export --recipe` in a process of its own; figures are medians of `--runs`. `copy_seconds` is a plain copy of
the weights on the same disk in the same run, file by file: the least that any export that reads them and writes as much could take.
`--whole` runs PyTorch's own exporter over the whole model with its weights (float16) instead. Each line is one case, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from harness import VDITC, measured, options, save

CASES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("export_models.toml").read_text())
SHARD = 5 << 30  # bytes of a file of the checkpoint, at most, as diffusers writes them
BLOCK = 8 << 20  # random weights that are repeated
STEM = "diffusion_pytorch_model"


def write_model(case: str, folder: Path) -> int:
    """Write a model directory; returns the bytes of its weights. The same case gives the same bytes."""
    import ml_dtypes

    config = CASES[case]
    block = (np.random.default_rng(0).standard_normal(BLOCK, np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16).view(np.uint8)
    shards: list[dict[str, list[int]]] = [{}]
    size = 0
    for name, shape in tensor_shapes(config).items():
        nbytes = 2 * int(np.prod(shape))
        if size + nbytes > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += nbytes
    owner: dict[str, str] = {}
    transformer = folder / "transformer"
    transformer.mkdir(parents=True)
    total = 0
    for number, tensors in enumerate(shards, 1):
        file = f"{STEM}-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {}
        end = 0
        for name, shape in tensors.items():
            begin, end = end, end + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
            owner[name] = file
        text = json.dumps(header).encode()
        with (transformer / file).open("wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, block.size):
                f.write(block[: min(block.size, end - start)].data)
        total += end
    (transformer / f"{STEM}.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": owner}))
    (transformer / "config.json").write_text(json.dumps(config))
    return total


def tensor_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Name -> shape of every tensor of the diffusers class with that config, in a process that may hold PyTorch."""
    command = [sys.executable, __file__, "--shapes", json.dumps(config)]
    found: dict[str, list[int]] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def print_shapes(config: dict[str, Any]) -> None:
    import torch

    kind = getattr(importlib.import_module("diffusers"), config["_class_name"])
    with torch.device("meta"):
        model = kind.from_config(config)
    print(json.dumps({name: list(tensor.shape) for name, tensor in model.state_dict().items()}))


def copy_seconds(folder: Path, scratch: Path) -> float:
    """A plain copy of the weights, each file removed before the next: there may be no room for all."""
    seconds = 0.0
    for file in sorted(folder.rglob("*.safetensors")):
        began = time.monotonic()
        shutil.copyfile(file, scratch)
        seconds += time.monotonic() - began
        scratch.unlink()
    return seconds


def export_whole(folder: Path, out: Path) -> None:
    """PyTorch's exporter over the whole Wan model, float16, with its weights."""
    import torch
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float16).eval()
    c, text = model.config.in_channels, model.config.text_dim
    half = torch.float16
    inputs = (torch.zeros(2, c, 5, 32, 48, dtype=half), torch.tensor([500, 500]), torch.zeros(2, 64, text, dtype=half))
    auto = torch.export.Dim.DYNAMIC
    shapes = {"hidden_states": {0: auto, 2: auto, 3: auto, 4: auto}, "timestep": {0: auto}, "encoder_hidden_states": {0: auto, 1: auto}}
    with torch.no_grad():
        torch.onnx.export(
            model,
            (),
            str(out),
            kwargs={**dict(zip(shapes, inputs, strict=True)), "return_dict": False},
            dynamic_shapes={**shapes, "return_dict": None},
            dynamo=True,
            opset_version=21,
            external_data=True,
        )


def run(case: str, recipe: str, runs: int, whole: bool, work: Path) -> dict[str, Any]:
    """One row."""
    from vditc.export.adapters.registry import adapters

    row: dict[str, Any] = {"bench": "export", "case": case, "recipe": "stock exporter" if whole else recipe}
    if CASES[case]["_class_name"] not in adapters():
        return {**row, "skipped": "no adapter yet"}
    model, out = work / case, work / "out" / "model.onnx"
    weights = sum(f.stat().st_size for f in model.rglob("*.safetensors")) if model.exists() else write_model(case, model)
    copies, measures = [], []
    load = os.getloadavg()[0]
    for _ in range(runs):
        out.parent.mkdir()
        try:
            if whole:
                measures.append(measured([sys.executable, __file__, "--whole-child", str(model), str(out)]))
            else:
                measures.append(measured([str(VDITC), "export", str(model), "--recipe", recipe, "-o", str(out)]))
            sizes = {p.name: p.stat().st_size for p in out.parent.iterdir()}
        finally:
            shutil.rmtree(out.parent)
        copies.append(copy_seconds(model, work / "copy"))
    return {
        **row,
        **{name: round(statistics.median(m[name] for m in measures), 2) for name in measures[0]},
        "weights_bytes": weights,
        "output_bytes": sum(sizes.values()),
        "graph_bytes": sizes["model.onnx"],
        "copy_seconds": round(statistics.median(copies), 2),
        "runs_seconds": [round(m["seconds"], 2) for m in measures],
        "load_before": round(load, 1),
    }


def main() -> None:
    if sys.argv[1:2] == ["--shapes"]:
        return print_shapes(json.loads(sys.argv[2]))
    if sys.argv[1:2] == ["--whole-child"]:
        return export_whole(Path(sys.argv[2]), Path(sys.argv[3]))
    ask = options(__doc__, CASES)
    ask.add_argument("--recipe", action="append", help="w8a8, w4a8-rtn, fp16, ... [default: w4a8-rtn]")
    ask.add_argument("--runs", type=int, default=1, help="exports per row [default: 1]")
    ask.add_argument("--whole", action="store_true", help="PyTorch's own exporter instead; only for wan-1.3b")
    ask.add_argument("--work", type=Path, help="folder for models and outputs, on the disk to be measured [default: a temporary one]")
    ask.add_argument("--keep", action="store_true", help="leave the models in --work for the next run")
    args = ask.parse_args()
    if args.list:
        print("\n".join(CASES))
        return None
    if args.whole and args.case != ["wan-1.3b"]:
        raise SystemExit("--whole runs with --case wan-1.3b: the stock exporter needs far more memory than the weights")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for case in args.case or CASES:
            for recipe in args.recipe or ["w4a8-rtn"]:
                row = run(case, recipe, args.runs, args.whole, work)
                print(json.dumps(row), flush=True)
                rows.append(row)
            if not args.keep:
                shutil.rmtree(work / case, ignore_errors=True)
    save(args.out, rows)
    return None


if __name__ == "__main__":
    main()
