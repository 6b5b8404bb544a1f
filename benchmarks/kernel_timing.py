"""Times of kernels on a GPU: CUDA events, L2 flushed in front of every run, candidates in turn, medians; peaks to hold them to."""

from __future__ import annotations

import re
import statistics
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]
PEAKS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("gpu_peaks.toml").read_text())["gpu"]
BUDGET = 2.0  # seconds of a candidate: of slow ones fewer runs are timed, and the row says how many
LEAST = 10


def peaks_of(gpu: str) -> dict[str, Any]:
    """The first entry of the table whose name is in that of the GPU; else one that has a `source` alone, which says so."""
    return next((entry for entry in PEAKS if re.search(entry["name"], gpu)), {"source": f"no entry for {gpu} in gpu_peaks.toml"})


class Timer:
    """On the current GPU."""

    device = torch.device("cuda")
    measures = True

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.name = torch.cuda.get_device_name()
        properties = torch.cuda.get_device_properties(0)
        # Written in front of every run: it pushes out what the last one left, and the GPU is busy while the next launch is prepared.
        self._flush = torch.empty(max(8 * properties.L2_cache_size, 256 << 20), dtype=torch.uint8, device=self.device)
        self._pool = torch.cuda.graph_pool_handle()
        self.peaks = peaks_of(self.name)

    def seconds(self, calls: Mapping[str, Call]) -> tuple[dict[str, float], dict[str, int], dict[str, str]]:
        """Medians, numbers of runs, and why a call could not be made; run by run all calls in turn, so that a ratio is of one time."""
        ready, failed = {}, {}
        for name, call in calls.items():
            try:
                ready[name] = self._captured(call)
            except Exception as error:  # a baseline that this torch or GPU has not
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        runs = {name: max(LEAST, min(self.runs, int(BUDGET / max(self._once(call), 1e-6)))) for name, call in ready.items()}
        times: dict[str, list[float]] = {name: [] for name in ready}
        for run in range(max(runs.values(), default=0)):
            for name, call in ready.items():
                if run < runs[name]:
                    times[name].append(self._once(call))
        return {name: statistics.median(found) for name, found in times.items()}, runs, failed

    def _captured(self, call: Call) -> Call:
        """A CUDA graph of the call, after three calls that warm it up; graphs are replayed one at a time, so they share memory."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            call()
        replay: Call = graph.replay
        return replay

    def _once(self, call: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class Dry:
    """Every call made once on the CPU, by the emulated library: that the benchmark works, and no time."""

    device = torch.device("cpu")
    measures = False
    name = "emulated"
    peaks: Mapping[str, Any] = {"source": "none: emulated"}

    def seconds(self, calls: Mapping[str, Call]) -> tuple[dict[str, float], dict[str, int], dict[str, str]]:
        """No time at all."""
        failed = {}
        for name, call in calls.items():
            try:
                call()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        return {}, {}, failed


def row(timer: Timer | Dry, about: Mapping[str, Any], calls: Mapping[str, Call], work: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What was measured of one problem.

    work: candidate -> {kind of operations ("int8", "int4", "bf16", "fp8"): their number, "bytes": moved}. `of_peak` is operations over
    the time, as a share of the GPU's peak of that kind; `of_floor` the least time that operations and bytes take, over the time.
    """
    seconds, runs, failed = timer.seconds(calls)
    peaks = timer.peaks
    of_peak, of_floor = {}, {}
    for name, time in seconds.items():
        kinds = {kind: n for kind, n in work.get(name, {}).items() if kind != "bytes"}
        if kinds and all(kind in peaks for kind in kinds):
            least = sum(n / (peaks[kind] * 1e12) for kind, n in kinds.items())
            of_peak[name] = round(least / time, 3)
            if "bandwidth" in peaks and "bytes" in work[name]:
                of_floor[name] = round(max(least, work[name]["bytes"] / (peaks["bandwidth"] * 1e9)) / time, 3)
        elif not kinds and "bandwidth" in peaks and "bytes" in work.get(name, {}):
            of_floor[name] = round(work[name]["bytes"] / (peaks["bandwidth"] * 1e9) / time, 3)
    rounded = {name: float(f"{time:.4g}") for name, time in seconds.items()}
    return {**about, "seconds": rounded, "runs": runs, "of_peak": of_peak, "of_floor": of_floor, "failed": failed}
