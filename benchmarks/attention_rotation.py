"""What a rotation within heads behind attention costs in quality, next to one of the whole width that is computed when the model runs.

    python benchmarks/attention_rotation.py digits_latte viditq int4 int8 [--seed 1] [--blocks]

Mean squared error of the bundled model's outputs on the inputs of full-precision trajectories, every third step of 2 clips of 2 seeds, for
`rotate_attention_output` "width" and "head", or with --blocks for `rotation_block` 0 and 256, a line of JSON each. Weights are per output
channel, with zero points; activations per token.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vditc.calibrate.methods.quarot import HEAD, WIDTH
from vditc.calibrate.stage import calibrate
from vditc.numerics import short
from vditc.pipeline.opened import OpenedModel
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.reference import ReferenceModel
from vditc.sampling import Feeds
from vditc.toml_data import Table

ASSETS = Path(__file__).resolve().parents[1] / "src/vditc/assets"
SEEDS, CLIPS, EVERY, PROMPTS = (7_000, 7_001), 2, 3, 2


def recipe(method: str, weight: str, activation: str, settings: dict[str, Any]) -> Recipe:
    """All block linears by one method."""
    scheme = {
        "weight": {"qtype": weight, "granularity": "per_channel", "symmetric": False},
        "activation": {"qtype": activation, "granularity": "per_token", "dynamic": True},
    }
    kept = {"match": ["time_embed.*", "modulation", "patch_embed", "*_embed.*", "refiner*", "head"], "keep": "not of the blocks"}
    data = {"schema": 1, "name": "study", "description": "", "method": method, "settings": settings}
    data |= {"calibration": {"prompts": PROMPTS, "seed": 0}, "rules": [kept, {"match": ["*_attn.*", "*ffn.*"], **scheme}]}
    return Recipe.parse(Table(data, "study"), digest=json.dumps(data))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "method", "weight", "activation"):
        ask.add_argument(name)
    ask.add_argument("--seed", type=int, default=0, help="of the rotations' signs")
    ask.add_argument("--blocks", action="store_true", help="rotations of the whole width and of 256 channels instead")
    args = ask.parse_args()
    opened = OpenedModel.open(ASSETS / args.model)
    exact = ReferenceModel(opened.adapter, opened.source, None)
    seen: list[tuple[int, Feeds, int, Any]] = []
    for seed in SEEDS:
        sampled = opened.sampled(opened.prompted(CLIPS, seed))
        for clip in range(CLIPS):

            def denoise(feeds: Feeds, step: int, seed: int = seed) -> Any:
                said = exact(feeds, step)
                if step % EVERY == 1:
                    seen.append((seed, {n: np.array(a) for n, a in feeds.items()}, step, said))
                return said

            sampled.sample(denoise, clip)
    varied = {"rotation_block": (0, 256)} if args.blocks else {"rotate_attention_output": (WIDTH, HEAD)}
    for mixes in (m for values in varied.values() for m in values):
        chosen = recipe(args.method, args.weight, args.activation, {next(iter(varied)): mixes, "seed": args.seed})
        with tempfile.TemporaryDirectory() as folder:
            out, work = Path(folder) / "calibration.safetensors", Path(folder) / "work"
            known = calibrate(opened.sampled(opened.prompted(PROMPTS, 0)), recipe=chosen, out=out, work=work, progress=SILENT)
            ours = ReferenceModel(opened.adapter, opened.source, known)
            errors = [(seed, float(np.square(ours(feeds, step) - said).mean())) for seed, feeds, step, said in seen]
        means = {str(seed): short(float(np.mean([e for s, e in errors if s == seed]))) for seed in SEEDS}
        print(
            json.dumps({**vars(args), "mixes": mixes, "output_mse": short(float(np.mean([e for _, e in errors]))), "per_seed": means}),
            flush=True,
        )


if __name__ == "__main__":
    main()
