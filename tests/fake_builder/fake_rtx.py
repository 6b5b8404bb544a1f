"""A builder for the place of TensorRT-RTX's; the folder FAKE_BUILDER tells it what to do.

A file `fail` or `die` there, with the names of targets (`fail` also TARGET-vae/next for one graph), makes their builds fail, or kills the
process; with `hang` they go on until the file is gone. A file `refuse` with names of layers makes builds say that these did not land, as
long as anything of theirs is codes. Each build leaves a line in `calls`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import PrecisionError, VditcError
from vditc.files import sha256
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.target import Target


class FakeRTX(TensorRTRTX):
    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        pass

    def build(self, *, lowered: Path, target: Target, out: Path, options: BuildOptions = DEFAULTS, **_: Any) -> EngineFacts:
        folder = Path(os.environ["FAKE_BUILDER"])
        with (folder / "calls").open("a") as calls:
            calls.write(f"{target.name} {named(lowered)} {os.getpid()} {time.time()}\n")
        while asked(folder / "hang", target):
            time.sleep(0.02)
        if asked(folder / "fail", target, lowered):
            raise VditcError(found="no kernel", wanted="one", where=target.name, fix="none")
        if asked(folder / "die", target):
            os.kill(os.getpid(), signal.SIGKILL)
        if (refused := folder / "refuse").exists():
            codes = {q.layer for q in expected_precision(lowered).quantized}
            if wrong := {layer: "computes half x half" for layer in refused.read_text().split() if layer in codes}:
                raise PrecisionError(found=str(wrong), wanted="codes", where=target.name, fix="--fallback", layers=wrong)
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        (out / "model.plan").write_text(f"{target.name} {sha256(lowered)} {options}\n")
        return EngineFacts(status="built", backend=self.name, plan_bytes=(out / "model.plan").stat().st_size, seconds=0.1, version="1.7")


def named(lowered: Path) -> str:
    """The folder of the transformer's bundle, or the component and its graph."""
    return lowered.parent.parent.name if lowered.parent.name == "lowered" else f"{lowered.parent.name}/{lowered.name.partition('.')[0]}"


def asked(file: Path, target: Target, lowered: Path | None = None) -> bool:
    names = {target.name, f"{target.name}-{named(lowered)}" if lowered is not None else target.name}
    return file.exists() and bool(names & set(file.read_text().split()))
