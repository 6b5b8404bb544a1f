"""The plugin library for a target's GPUs: found on disk and checked, or built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.files import sha256
from vditc.plugins.build import ARCHITECTURES, FACTS, LIBRARY, Wanted, build, library_path
from vditc.progress import Progress
from vditc.target import Target

JETSON = ("87", "110")


def find_library(target: Target, said: Path | None = None) -> Path:
    """The library for a target: the file `said`, in the folder `said`, or where `vditc plugins build` puts it (VDITC_PLUGINS, the cache).

    InputError when there is none, when it is not the one that the facts beside it speak of, or when they say that it has no code for
    one of the target's GPUs.
    """
    path = said if said is not None and not said.is_dir() else library_path(target.platform, said)
    if not path.is_file():
        raise InputError(found="no file", wanted=LIBRARY, where=str(path), fix="check the path, or build it: vditc plugins build")
    if (facts := _facts(path)) is not None:
        if (digest := sha256(path)) != facts["sha256"]:
            raise InputError(
                found=f"another file than {FACTS} beside it speaks of, cut short or replaced (sha256 {digest[:12]})",
                wanted=f"sha256 {facts['sha256'][:12]}",
                where=str(path),
                fix="build it again (vditc plugins build), or copy both files together",
            )
        has = facts["architectures"]
        if lacking := [arch for arch in target.arch if not runs_on(arch, has)]:
            raise InputError(
                found=f"code for {', '.join(has)}",
                wanted=f"code for {', '.join(lacking)} of target {target.name}",
                where=str(path),
                fix="build it with these: vditc plugins build --arch",
            )
    return path


def build_for(targets: Sequence[Target], progress: Progress) -> None:
    """Build what is not there: for each platform one library, for the GPUs of all these targets and those that the one in its place is for.

    A library of the cache that has code for these and more does as well. InputError or VditcError of the build.
    """
    for platform in dict.fromkeys(target.platform for target in targets):
        those = [target for target in targets if target.platform == platform]
        if not (why := "; ".join(dict.fromkeys(filter(None, map(_lacks, those))))):
            continue
        machine, _, cuda = platform.partition("-cuda")
        gpus = [machine_code(arch, platform) for target in those for arch in target.arch] + _there(platform)
        wanted = Wanted.of(machine, sorted(set(gpus), key=lambda gpu: int(gpu.rstrip("af"))), cuda=int(cuda or 13))
        progress.note(f"building the plugin library for {platform}, sm {' '.join(wanted.architectures)}: {why}")
        build(wanted, wider=True, progress=progress)


def machine_code(arch: str, platform: str) -> str:
    """What a library for a GPU is compiled for: sm_90 -> 90a, where the platform's library has that by default."""
    number = arch.removeprefix("sm_")
    return next((known for known in ARCHITECTURES[platform] if known in (number, f"{number}a")), number)


def runs_on(arch: str, has: Sequence[str]) -> bool:
    """Machine code of x.y runs on x.z, z not less than y, but not from a desktop's GPU on Jetson's; with an a on x.y alone.

    CUDA C++ Programming Guide, Binary Compatibility.
    """
    number = arch.removeprefix("sm_")
    family = [] if number in JETSON else [one.removesuffix("f") for one in has if not one.endswith("a")]
    return number in has or f"{number}a" in has or any(one[:-1] == number[:-1] and one[-1] <= number[-1] for one in family)


def _lacks(target: Target) -> str:
    """Why the library that is there does not do for a target; "" if it does."""
    try:
        find_library(target)
    except InputError as error:
        return f"{error.found} at {error.where}"
    return ""


def _there(platform: str) -> list[str]:
    """GPUs of the library that would be replaced: others may need it."""
    try:
        facts = _facts(library_path(platform))
    except InputError:  # none, or of no known origin
        return []
    return [] if facts is None else list(facts["architectures"])


def _facts(library: Path) -> dict[str, Any] | None:
    """What is said of a library beside it: its sha256 and GPUs; None where nothing is. InputError when that cannot be read."""
    path = library.with_name(FACTS)
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text())
        return {"sha256": str(said["sha256"]), "architectures": [str(gpu) for gpu in said["architectures"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            found=f"unreadable ({error!r})", wanted="what is said of the library", where=str(path), fix="build it again"
        ) from error
