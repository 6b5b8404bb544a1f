"""`python -m vditc.pipeline.bench_worker REQUEST.json`: one contestant of a benchmark, in a process of its own.

Orders come as JSON lines on stdin, answers go to stdout: {"step": i} is answered by {"seconds": s}, {"layers": runs} by {"layers": {...}},
{"end": true} by {"peak_rss_bytes": n}. The first answer, unasked, is {"open_seconds": s}. An error ends it with {"error": {...}}.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.adapter import InputSpec
from vditc.errors import VditcError
from vditc.sampling import Denoiser, Feeds


def main(request_path: str) -> int:
    """Exit status 0, or 1 after an error was answered."""
    request, out = json.loads(Path(request_path).read_text()), sys.stdout
    sys.stdout = sys.stderr  # whatever a runtime prints is no answer

    def answer(data: Mapping[str, Any]) -> None:
        print(json.dumps(data), file=out, flush=True)

    try:
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            denoise, specs = _opened(request, stack)
            answer({"open_seconds": time.monotonic() - began})
            feeds = _feeds(specs, request["sizes"])
            for line in sys.stdin:
                order = json.loads(line)
                if "end" in order:
                    break
                if "layers" in order:
                    measure = getattr(denoise, "layer_seconds", None)
                    answer({"layers": measure(_at(feeds, specs, request, 0), 0, order["layers"]) if measure else None})
                    continue
                told = _at(feeds, specs, request, order["step"])
                began = time.perf_counter()
                denoise(told, order["step"])
                answer({"seconds": time.perf_counter() - began})
    except VditcError as error:
        answer({"error": {"found": error.found, "wanted": error.wanted, "where": error.where, "fix": error.fix}})
        return 1
    from vditc.runtimes.trt_worker import peak_rss_bytes

    answer({"peak_rss_bytes": peak_rss_bytes()})
    return 0


def _opened(request: Mapping[str, Any], stack: contextlib.ExitStack) -> tuple[Denoiser, tuple[InputSpec, ...]]:
    if "model" in request:
        from vditc.export.adapters.registry import adapter_for
        from vditc.lora import Lora, fuse
        from vditc.model_dir import ModelDir
        from vditc.runtimes.reference import ReferenceModel

        source = fuse(ModelDir.open(Path(request["model"]), request["part"]), [Lora.parse(text) for text in request["loras"]])
        adapter = adapter_for(source)
        return ReferenceModel(adapter, source, None, device=request["device"]), adapter.inputs(source)
    from vditc.bundle import Bundle
    from vditc.pipeline.denoisers import open_denoiser
    from vditc.runtimes.graph_inputs import model_inputs

    bundle = Bundle.open(Path(request["bundle"]), hashes=False)  # the parent has checked them
    return stack.enter_context(open_denoiser(bundle, request["backend"])), model_inputs(bundle.file("model.onnx"))


def _feeds(specs: tuple[InputSpec, ...], sizes: Mapping[str, int]) -> Feeds:
    import numpy as np

    random = np.random.default_rng(0)
    return {spec.name: spec.example(sizes, random) for spec in specs}


def _at(feeds: Feeds, specs: tuple[InputSpec, ...], request: Mapping[str, Any], step: int) -> Feeds:
    """The same with the time of a step."""
    import numpy as np

    times = {s.name: np.full_like(feeds[s.name], request["timesteps"][step]) for s in specs if s.fill == "timestep"}
    return {**feeds, **times}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
