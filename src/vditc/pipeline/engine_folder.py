"""What an engine's folder holds: one engine, or what a device builds it with."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from vditc.device.package import ARCHIVE, BUILT, DEVICE, SCRIPT, SUMS
from vditc.runtimes.built_with import NAME as ENGINE
from vditc.runtimes.trt_backend import LAYERS
from vditc.segments import NAME as SEGMENTS

_PLAN = re.compile(r"model\.plan|segment_\d+\.plan")  # and nobody's else, in a folder of the user's


def drop_others(folder: Path, plans: Collection[str], *, cut: bool) -> None:
    """Remove what an earlier build left that was cut otherwise, or was made where this one is not.

    `plans`: of the engine that was built; none where a device builds it. `cut`: into segments.
    """
    stale = {ARCHIVE, BUILT, DEVICE, SCRIPT, SUMS} if plans else {ENGINE, LAYERS}
    stale |= {path.name for path in folder.glob("*.plan") if _PLAN.fullmatch(path.name)} - set(plans)
    if not cut:
        stale.add(SEGMENTS)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
