"""What denoises with a bundle: its portable graph, or the engine of one of its targets."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from vditc.bundle import Bundle
from vditc.errors import InputError
from vditc.experts import ExpertSwitch, experts_of
from vditc.pipeline.guidance_passes import PORTABLE
from vditc.runtimes.backend import EnginePlugins
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.registry import backend as backend_named
from vditc.sampling import Denoiser


@contextlib.contextmanager
def open_denoiser(bundle: Bundle, backend: str, weight_budget: int | None = None) -> Iterator[Denoiser]:
    """Of all steps: the portable graph in ONNX Runtime, or the engine of one of the bundle's targets.

    Of a bundle of two experts each is opened when its steps come (`vditc.experts.ExpertSwitch`). `weight_budget`: see `Backend.open`.
    """
    with contextlib.ExitStack() as stack:
        if bundle.experts:
            switch = ExpertSwitch([(e.steps, functools.partial(open_expert, e.bundle, backend, weight_budget)) for e in experts_of(bundle)])
            stack.callback(switch.close)
            yield switch
        else:
            yield stack.enter_context(open_expert(bundle, backend, weight_budget))


@contextlib.contextmanager
def open_expert(bundle: Bundle, backend: str, weight_budget: int | None = None) -> Iterator[Denoiser]:
    """The bundle's own graph or engine alone."""
    check_backend(bundle, backend)
    targets = bundle.manifest.targets
    name = PORTABLE if backend == PORTABLE else targets[backend]["backend"]
    said = targets.get(backend, {}).get("plugins", {})
    plugins = None
    if "library" in said:
        named = [operator.rpartition(".")[2] for operator in said["operators"]]
        wanted = tuple((name, said["version"], said["namespace"]) for name in named)
        plugins = EnginePlugins(library=bundle.file(said["library"]), wanted=wanted)
    with backend_named(name).open(
        model=bundle.path / "model.onnx",
        engine=bundle.path / "engines" / backend,
        plugins=plugins,
        weight_budget=weight_budget,
    ) as denoiser:
        yield denoiser


def check_backend(bundle: Bundle, backend: str) -> None:
    """InputError for what is neither the portable graph's backend nor a target of the bundle."""
    if backend != PORTABLE and backend not in (targets := bundle.manifest.targets):
        raise InputError(
            found=f"--backend {backend}", wanted=", ".join([PORTABLE, *targets]), where=str(bundle.path), fix="choose one of these"
        )


def backend_here(bundle: Bundle) -> str:
    """The target with an engine for this machine's GPU; on a machine without one the portable graph.

    InputError for a GPU without an engine: a CPU would be too slow a surprise.
    """
    arch = compute_capability()
    if arch is None:
        return PORTABLE
    built = {name: t for name, t in bundle.manifest.targets.items() if t["engine"]["status"] == "built"}
    found = next((name for name, t in built.items() if arch in t["arch"]), None)
    if found is None:
        raise InputError(
            found=f"engines for {', '.join(a for t in built.values() for a in t['arch']) or 'no GPU'}",
            wanted=f"an engine for this machine's {arch}",
            where=str(bundle.path),
            fix=f"build one here (engines/<target>/build.sh, or `vditc build`), or ask for the backend {PORTABLE}",
        )
    return found
