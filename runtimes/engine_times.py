"""Where the time of an engine goes, by TensorRT's own profiler (IProfiler), and which ONNX nodes each of its kernels holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vditc.errors import VditcError
from vditc.runtimes.trt_inspection import kernel_nodes

Measured = tuple[tuple[str, ...], float]  # the ONNX nodes of a kernel, or its own name where they are not known; seconds of a run


class KernelClock:
    """Times the kernels of `context`, run by run; `measured` leaves out the first one.

    The profiler puts an event before and behind every kernel, so that nothing overlaps and the sum is more than a run takes without it.
    """

    def __init__(self, trt: Any, engine: Any, context: Any) -> None:
        self._trt, self._engine, self._context, self._clock = trt, engine, context, _clock(trt)
        context.enqueue_emits_profile = False  # else every enqueue waits for the device by itself
        context.profiler = self._clock

    def begin(self) -> None:
        """Of a run."""
        self._clock.reported.append([])

    def end(self, number: int) -> None:
        """Of a run, the device has finished it; VditcError when no times come."""
        if not self._context.report_to_profiler() or not self._clock.reported[-1]:
            raise VditcError(
                found=f"no times of run {number}",
                wanted="the time of every layer of the engine",
                where=f"the profiler of {self._trt.__name__} {self._trt.__version__}",
                fix="bench with --layers 0, which leaves them out",
            )

    def measured(self) -> list[Measured]:
        """Kernels in the order in which they run, the mean of all runs but the first."""
        told = self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
        return mean_times(self._clock.reported[1:], kernel_nodes(told))


def mean_times(runs: Sequence[Sequence[tuple[str, float]]], nodes: Mapping[str, Sequence[tuple[str, ...]]]) -> list[Measured]:
    """`runs`: (name of a kernel, milliseconds) in order. Kernels of one name are told apart by their order, also in `nodes`."""
    sums: dict[tuple[str, int], float] = {}
    for run in runs:
        seen: dict[str, int] = {}
        for name, milliseconds in run:
            place = seen[name] = seen.get(name, -1) + 1
            sums[name, place] = sums.get((name, place), 0.0) + milliseconds
    found = []
    for (name, place), milliseconds in sums.items():
        known = nodes.get(name, ())
        own = known[min(place, len(known) - 1)] if known else ()
        found.append((own or (name,), milliseconds / 1e3 / len(runs)))
    return found


def _clock(trt: Any) -> Any:
    class Clock(trt.IProfiler):  # type: ignore[misc]
        """Keeps what is reported; `reported` has a list for each run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.reported: list[list[tuple[str, float]]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by TensorRT."""
            self.reported[-1].append((layer_name, ms))

    return Clock()
