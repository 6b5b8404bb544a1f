"""TensorRT 10.3 to 11: engines for datacenter GPUs and Jetson, built where that GPU is."""

from __future__ import annotations

import importlib.util
import os
import shlex
from contextlib import AbstractContextManager
from pathlib import Path

from vditc.adapter import InputSpec
from vditc.errors import VditcError
from vditc.files import whole_file, write_text
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import Backend, EngineFacts
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.precision import assert_landed, expected_precision
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_inspection import inspected_program
from vditc.runtimes.trt_process import built_facts, run_build, shapes
from vditc.runtimes.trt_runner import open_engine
from vditc.sampling import Denoiser
from vditc.target import Target

_SCRIPT = """\
#!/bin/sh
# Builds model.plan beside this script. Run it on the device: {description} ({arch}), {runtime}, with `pip install vditc[gpu]`.
set -eu
cd "$(dirname "$0")"
{command}
if [ ! -s built/model.plan ]; then
    echo "build.sh: no model.plan: the GPU of this machine is not of {arch}" >&2
    exit 1
fi
mv built/model.plan model.plan
rm -r built
"""


class TensorRT(Backend):
    """Engines by TensorRT, which times its kernels on the GPU that it builds for."""

    name = "tensorrt"

    def check(self, target: Target) -> None:
        """VditcError if the target's GPU is here and the package is not; elsewhere a script is written, which needs nothing."""
        if compute_capability() in target.arch and importlib.util.find_spec(self.name) is None:
            raise VditcError(
                found="tensorrt is not installed",
                wanted=target.runtime,
                where=f"target {target.name}",
                fix="pip install vditc[gpu]",
            )

    def build(
        self,
        *,
        lowered: Path,
        target: Target,
        profile: Profile,
        inputs: tuple[InputSpec, ...],
        out: Path,
        work: Path,
        progress: Progress,
        plugins: Path | None = None,
    ) -> EngineFacts:
        """On the target's GPU: writes `out`/model.plan, its precision read by the engine inspector. Elsewhere: `out`/build.sh."""
        self.check(target)
        if compute_capability() not in target.arch:
            write_build_script(lowered=lowered, target=target, profile=profile, out=out, plugins=plugins)
            return EngineFacts(status="to build on the device", backend=self.name)
        expectation = expected_precision(lowered, plugins=plugins is not None)
        with progress.task(f"build engine for {target.name}", 1) as advance, whole_file(out / "model.plan") as plan:
            report = work / "inspection.json"
            request = BuildRequest(
                module=self.name,
                lowered=str(lowered),
                plan=str(plan),
                shapes=shapes(inputs, profile),
                compute_capabilities=[],
                inspection=str(report),
                versions=(target.versions.least, target.versions.greatest),
                plugins=str(plugins) if plugins is not None and expectation.plugins else None,
                plugin_nodes=expectation.plugin_names,
            )
            result = run_build(request, work)
            landed = assert_landed(expectation, inspected_program(report))
            plan_bytes = plan.stat().st_size
            advance()
        return built_facts(self.name, target.arch, plan_bytes, result, landed)

    def open(self, *, model: Path, engine: Path, plugins: Path | None = None) -> AbstractContextManager[Denoiser]:
        """Runs `engine`/model.plan on the GPU."""
        return open_engine(self.name, engine / "model.plan", model, plugins)


def write_build_script(*, lowered: Path, target: Target, profile: Profile, out: Path, plugins: Path | None = None) -> None:
    """Write `out`/build.sh, which builds the engine from the lowered graph and the plugin library that lie beside it in the bundle."""
    ranges = ",".join(f"{axis}={sizes}" for axis, sizes in profile.axes.items())
    words = ["vditc", "build", os.path.relpath(lowered, out), "--target", target.name, "--profile", ranges, "-o", "built", "--force"]
    words += [] if plugins is None else ["--plugins", os.path.relpath(plugins, out)]
    script = out / "build.sh"
    write_text(
        script,
        _SCRIPT.format(
            description=target.description, arch=" ".join(target.arch), runtime=target.runtime, command=" ".join(map(shlex.quote, words))
        ),
    )
    script.chmod(0o755)
