"""First on PYTHONPATH, it puts a builder in the place of TensorRT-RTX in every process; the folder FAKE_BUILDER tells it what to do.

A file `fail` or `die` there, with the names of targets, makes their builds fail, or kills the process; with `hang` they go on until
the file is gone, with `once-die` the first one dies. Each build leaves a line in `calls`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import VditcError
from vditc.files import sha256
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.registry import BACKENDS
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.target import Target


class FakeRTX(TensorRTRTX):
    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        pass

    def build(self, *, lowered: Path, target: Target, out: Path, options: BuildOptions = DEFAULTS, **_: Any) -> EngineFacts:
        folder = Path(os.environ["FAKE_BUILDER"])
        with (folder / "calls").open("a") as calls:
            calls.write(f"{target.name} {lowered.parent.parent.name} {os.getpid()} {time.time()}\n")
        while asked(folder / "hang", target):
            time.sleep(0.02)
        if asked(folder / "fail", target):
            raise VditcError(found="no kernel", wanted="one", where=target.name, fix="none")
        if asked(folder / "die", target):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        (out / "model.plan").write_text(f"{target.name} {sha256(lowered)} {options}\n")
        return EngineFacts(status="built", backend=self.name, plan_bytes=(out / "model.plan").stat().st_size, seconds=0.1, version="1.7")


def asked(file: Path, target: Target) -> bool:
    return file.exists() and target.name in file.read_text().split()


BACKENDS["tensorrt_rtx"] = FakeRTX
