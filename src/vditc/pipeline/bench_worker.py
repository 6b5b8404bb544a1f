"""`python -m vditc.pipeline.bench_worker REQUEST.json`: one contestant of a benchmark, in a process of its own.

Orders come as JSON lines on stdin, answers go to stdout: {"step": i} is answered by {"seconds": s}, {"layers": runs} by {"layers": {...}},
{"end": true} by {"peak_rss_bytes": n, "device_bytes": n, "context_bytes": n}, null where there is no GPU. The first answer, unasked, is
{"open_seconds": s}. An error ends it with {"error": {...}}.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vditc.adapter import InputSpec
from vditc.errors import VditcError
from vditc.runtimes.trt_worker import peak_rss_bytes
from vditc.sampling import Denoiser, Feeds


def main(request_path: str) -> int:
    """Exit status 0, or 1 after an error was answered."""
    request, out = json.loads(Path(request_path).read_text()), sys.stdout
    sys.stdout = sys.stderr  # whatever a runtime prints is no answer

    def answer(data: Mapping[str, Any]) -> None:
        print(json.dumps(data), file=out, flush=True)

    device = DeviceMemory()
    try:
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            with device.watched():
                denoise, specs = _opened(request, stack)
            answer({"open_seconds": time.monotonic() - began})
            feeds, peak = _feeds(specs, request["sizes"]), peak_rss_bytes()
            for line in sys.stdin:
                order = json.loads(line)
                if "end" in order:
                    break
                if "layers" in order:
                    measure = getattr(denoise, "layer_seconds", None)
                    answer({"layers": measure(_at(feeds, specs, request, 0), 0, order["layers"]) if measure else None})
                    continue
                told = _at(feeds, specs, request, order["step"])
                with device.watched():
                    began = time.perf_counter()
                    denoise(told, order["step"])
                    seconds = time.perf_counter() - began
                peak = peak_rss_bytes()  # before the layers are profiled, which takes more
                answer({"seconds": seconds})
            context_bytes = getattr(denoise, "context_bytes", None)
    except VditcError as error:
        answer({"error": {"found": error.found, "wanted": error.wanted, "where": error.where, "fix": error.fix}})
        return 1
    answer({"peak_rss_bytes": peak, "device_bytes": device.peak, "context_bytes": context_bytes})
    return 0


class DeviceMemory:
    """Most that this process held of the GPU when a step had ended, in bytes; None without a GPU.

    The driver tells what is free for all. Contestants take turns, so what goes while one is watched is its own, unless somebody else
    uses the GPU at the same time.
    """

    def __init__(self) -> None:
        from vditc.runtimes.cuda_runtime import Cuda
        from vditc.runtimes.gpu import compute_capability

        self.peak: int | None = None
        self._held, self._cuda = 0, None
        if compute_capability() is not None:
            with contextlib.suppress(VditcError):  # no CUDA runtime: engines say so, other contestants may do without
                self._cuda = Cuda.load()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """What is taken inside counts."""
        before = self._cuda.free_memory() if self._cuda else 0
        yield
        if self._cuda:
            self._held += before - self._cuda.free_memory()
            self.peak = max(self.peak or 0, self._held)


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
