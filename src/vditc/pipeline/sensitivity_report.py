"""`vditc sensitivity`: a recipe's layers, sorted by what their quantization costs the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vditc.calibration import Calibration
from vditc.files import write_text
from vditc.pipeline.sensitivity import sensitivity, trajectory_feeds
from vditc.progress import Progress
from vditc.runtimes.reference import ReferenceModel, layer_errors
from vditc.sampled_model import SampledModel
from vditc.schedule import step_groups

SCHEMA = 1
NOTES = "results.jsonl"  # in the working folder


def analyse(
    sampled: SampledModel,
    *,
    calibration: Calibration,
    groups: int,
    out: Path,
    work: Path,
    progress: Progress,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write the JSON file `out`, whole, and return its content; a killed run goes on from `work`.

    Of every quantized layer: `error`, the mean over all step groups of `errors`, the prediction's relative squared error when it alone
    is quantized; and `own_error`, the relative squared error of its own output on full-precision inputs. The worst layer comes first.
    """
    sampled.check()
    source, adapter = sampled.source, sampled.adapter
    chosen = step_groups(sampled.steps, groups)
    model = ReferenceModel(adapter, source, None, device)
    feeds = trajectory_feeds(model, sampled, chosen, progress)
    notes = work / NOTES
    found = sensitivity(
        source=source,
        adapter=adapter,
        candidates={calibration.recipe: calibration},
        feeds=feeds,
        progress=progress,
        device=device,
        work=notes,
        model=model,
    )[calibration.recipe]
    del model
    own = layer_errors(adapter, source, calibration, (feed for group in feeds for feed in group), device)
    layers = [
        {
            "layer": name,
            "role": calibration.layers[name].role,
            "error": math.fsum(errors) / len(errors),
            "errors": errors,
            "own_error": own[name] ** 2 if name in own else None,
        }
        for name, errors in sorted(found.items(), key=lambda item: (-math.fsum(item[1]), item[0]))
    ]
    report = {
        "schema": SCHEMA,
        "model_class": source.model_class,
        "model_digest": source.digest,
        "recipe": calibration.recipe,
        "recipe_digest": calibration.recipe_digest,
        "clips": len(sampled.conditioning),
        "steps": sampled.steps,
        "step_groups": [[group[0], group[-1]] for group in chosen],
        "layers": layers,
    }
    write_text(out, json.dumps(report, indent=1) + "\n")
    notes.unlink(missing_ok=True)
    return report
