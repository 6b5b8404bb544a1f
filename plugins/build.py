"""Builds libvditc_plugins.so, the kernels for GPUs and their TensorRT plugins, once for each state of what it is made of.

    FOLDER/<platform>/libvditc_plugins.so        platform: x86_64, aarch64, x86_64-cuda12, aarch64-cuda12
    FOLDER/<platform>/libvditc_plugins.json      what it was made of, by what, for which GPUs; sha256; registers and stack of every kernel

A library is kept in the cache under a digest of its sources, compilers and flags. What one source changes is compiled again and
nothing else, by Ninja in a work folder of the cache, into which sources are copied when their bytes differ.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vditc.errors import InputError, VditcError
from vditc.files import sha256, whole_file, write_text
from vditc.plugins import nvrtc
from vditc.plugins.library import ABI_VERSION
from vditc.plugins.resources import usages
from vditc.plugins.toolkit import cutlass_version, find_cutlass, find_program, find_toolkit, host_machine
from vditc.plugins.wheels import cache_home, tree_digest
from vditc.progress import SILENT, Progress

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libvditc_plugins.so"
FACTS = "libvditc_plugins.json"
TIMES = "libvditc_plugins.times.json"  # seconds and memory of the compilers: differs from run to run, so it is no part of FACTS
PATTERNS = ("CMakeLists.txt", "exports.map", "compile_log.py", "nvrtc_units.py", "native/nvrtc/*", "*/*.h", "*/*.cuh", "*/*.cpp", "*/*.cu")
# Machine code for the GPUs that there are beside such a CPU; "a" is code for that GPU alone, which wgmma and tcgen05 are.
ARCHITECTURES = {
    "x86_64": ("80", "86", "89", "90a", "100a", "103a", "120a"),
    "aarch64": ("87", "110a"),
    "aarch64-cuda12": ("87",),  # JetPack 6
    "x86_64-cuda12": ("80", "86", "89", "90a"),  # servers whose driver is of CUDA 12
}
# What files of CUTLASS are for, by the end of their names: its 2.x mma.sync where there is no newer form, 3.x wgmma, 3.x tcgen05 with int8.
FLAGS = ("CXXFLAGS", "CUDAFLAGS", "LDFLAGS", "NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS")  # of the environment, which compilers obey
CUTLASS_ARCHITECTURES = {"sm80": ("80", "86", "87", "88", "89", "120", "120a", "121", "121a"), "sm90": ("90a",), "sm100": ("100a", "110a")}
_ARCHITECTURE = re.compile(r"(75|8[06789]|90|1[012][013])[af]?")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One library: for a platform, GPUs and with or without what comes from elsewhere."""

    platform: str
    architectures: tuple[str, ...]
    cutlass: bool = True  # the tactics that are made of it
    tensorrt: Path | None = None  # where NvInfer.h is; None: our own declarations

    @classmethod
    def of(
        cls,
        platform: str | None = None,
        architectures: Sequence[str] = (),
        *,
        cuda: int = 13,
        cutlass: bool = True,
        tensorrt: Path | None = None,
    ) -> Wanted:
        """Checked; nothing said means this machine and its default GPUs. InputError on what there is not."""
        machine = platform or host_machine()
        name = machine if cuda == 13 else f"{machine}-cuda{cuda}"
        if name not in ARCHITECTURES:
            raise InputError(
                found=name, wanted=" or ".join(ARCHITECTURES), where="the platform", fix="choose one of them (--platform, --cuda)"
            )
        for architecture in architectures:
            if not _ARCHITECTURE.fullmatch(architecture):
                raise InputError(
                    found=repr(architecture),
                    wanted=f"a compute capability as {', '.join(ARCHITECTURES['x86_64'])}",
                    where="--arch",
                    fix="write 8.9 as 89; 9.0, 10.0, 10.3, 11.0 and 12.0 with an a",
                )
        if tensorrt is not None and not any((tensorrt / place / "NvInfer.h").is_file() for place in ("include", ".")):
            raise InputError(
                found="no NvInfer.h", wanted="TensorRT's headers", where=str(tensorrt), fix="name the folder that holds include/NvInfer.h"
            )
        return cls(name, tuple(dict.fromkeys(architectures)) or ARCHITECTURES[name], cutlass, tensorrt)

    @property
    def by_nvrtc(self) -> bool:
        """Whether it is for drivers of CUDA 12."""
        return self.platform.endswith("-cuda12")

    @property
    def machine(self) -> str:
        """x86_64 or aarch64."""
        return self.platform.partition("-")[0]


@dataclasses.dataclass(frozen=True)
class Built:
    """A library that is there."""

    path: Path
    facts: dict[str, Any]
    compiled: int  # sources that were compiled for it now; 0: all was there


def default_folder() -> Path:
    """Where libraries are put and looked for when nobody says where: VDITC_PLUGINS, else the cache."""
    said = os.environ.get("VDITC_PLUGINS")
    return Path(said) if said else cache_home() / "built"


def library_path(platform: str | None = None, folder: Path | None = None) -> Path:
    """Of a library that was built. InputError when there is none."""
    path = (folder or default_folder()) / (platform or host_machine()) / LIBRARY
    if not path.is_file():
        raise InputError(found="no library", wanted=LIBRARY, where=str(path), fix="build it: vditc plugins build")
    return path


def library_here(cuda: int) -> Path:
    """Of a library that was built for this machine, of its two the one of the program's CUDA. InputError when there is none."""
    names = (host_machine(), f"{host_machine()}-cuda12")
    for name in names[::-1] if cuda == 12 else names:
        if (path := default_folder() / name / LIBRARY).is_file():
            return path
    return library_path()


def units(wanted: Wanted, sources: Path = SOURCES) -> list[tuple[str, tuple[str, ...]]]:
    """Every source that the library is made of, and the GPUs that it is compiled for; C++ is for none."""
    listed: list[tuple[str, tuple[str, ...]]] = []
    for path in sorted([*sources.glob("*/*.cpp"), *sources.glob("*/*.cu")]):
        architectures = wanted.architectures if path.suffix == ".cu" else ()
        if path.stem.startswith("emulator"):
            continue
        if path.stem.startswith("cutlass_") and path.suffix == ".cu":
            architectures = tuple(a for a in architectures if a in CUTLASS_ARCHITECTURES.get(path.stem.split("_")[1], ()))
            if not (wanted.cutlass and architectures and not wanted.by_nvrtc):
                continue
        listed.append((str(path.relative_to(sources)), architectures))
    return listed


def build(
    wanted: Wanted,
    out: Path | None = None,
    *,
    wider: bool = False,
    jobs: int | None = None,
    progress: Progress = SILENT,
    sources: Path = SOURCES,
    cache: Path | None = None,
) -> Built:
    """Build a library, or take it from the cache, and put it with its facts into `out`/<platform>.

    `wider`: one of the cache for more GPUs than these, equal in all else, does as well.
    InputError when a compiler or header is missing, VditcError with the compiler's words when a source does not compile.
    """
    cache = cache or cache_home()
    made_of, options = nvrtc.settings(wanted, cache) if wanted.by_nvrtc else _settings(wanted, cache, sources)
    made_of = {
        "platform": wanted.platform,
        "architectures": list(wanted.architectures),
        **made_of,
        "tensorrt": tensorrt_version(wanted.tensorrt),
    }
    options += _host(wanted)
    made_of["flags"] = {name: os.environ[name] for name in FLAGS if os.environ.get(name)}
    made_of["build"] = tree_digest(SOURCES, ("build.py", "nvrtc.py", "toolkit.py"))
    made_of["sources"] = tree_digest(sources, PATTERNS)
    digest = hashlib.sha256(json.dumps([made_of, ABI_VERSION], sort_keys=True).encode()).hexdigest()
    kept = cache / "libraries" / digest[:16]
    if wider and not (kept / FACTS).is_file():
        kept = _wider(cache, wanted, made_of) or kept
    compiled = 0
    if not (kept / FACTS).is_file():
        # One work folder for each way to compile, whatever the sources: what did not change is there.
        way = hashlib.sha256(json.dumps([{k: v for k, v in made_of.items() if k != "sources"}, options]).encode()).hexdigest()[:16]
        with _locked(cache / "work" / way, progress) as work:
            compiled = _compile(work, sources, options, jobs, progress)
            _keep(work / "build", kept, made_of, digest)
    facts = json.loads((kept / FACTS).read_text())
    path = (out or default_folder()) / wanted.platform / LIBRARY
    if not (path.is_file() and sha256(path) == facts["sha256"]):
        with whole_file(path) as temporary:
            shutil.copy(kept / LIBRARY, temporary)
    for name in (FACTS, TIMES):  # facts last would be a library of no known origin after a kill; they name its sha256
        write_text(path.with_name(name), (kept / name).read_text())
    return Built(path, facts, compiled)


def _wider(cache: Path, wanted: Wanted, made_of: dict[str, Any]) -> Path | None:
    """The library of the cache for the fewest GPUs that has code for all of these and is made of the same."""
    # Of GPUs that no tactic of CUTLASS is for, nothing is said of it.
    same = {k: v for k, v in made_of.items() if k != "architectures" and not (k == "cutlass" and v is None and wanted.cutlass)}
    found: list[tuple[int, Path]] = []
    for path in sorted((cache / "libraries").glob(f"*/{FACTS}")):
        facts = json.loads(path.read_text())
        has = facts["architectures"]
        if {k: facts.get(k) for k in (*same, "abi")} == {**same, "abi": ABI_VERSION} and {*wanted.architectures} <= {*has}:
            found.append((len(has), path.parent))
    return min(found)[1] if found else None


def _settings(wanted: Wanted, cache: Path, sources: Path) -> tuple[dict[str, Any], list[str]]:
    """What nvcc's library is made of, and CMake's options for it."""
    toolkit = find_toolkit(wanted.machine, cache)
    cutlass = find_cutlass(cache) if any(Path(name).match("cutlass_*.cu") for name, _ in units(wanted, sources)) else None
    made_of = {
        "cuda": toolkit.version,
        "cxx": toolkit.cxx_version,
        "cutlass": cutlass_version(cutlass) if cutlass else None,
    }
    flags = [f'-L"{toolkit.cudart}"', *(f'-isystem "{folder}"' for folder in toolkit.include)]
    options = [
        f"-DCMAKE_CXX_COMPILER={toolkit.cxx}",
        f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}",
        f"-DCMAKE_CUDA_HOST_COMPILER={toolkit.cxx}",
        # nvcc of the wheels looks for libraries in lib64, which they have not; for another machine it looks in targets/.
        f"-DCMAKE_CUDA_FLAGS={' '.join(flags)}",
        f"-DVDITC_CUDART_DIR={toolkit.cudart}",
        f"-DVDITC_CUDA_INCLUDE={';'.join(map(str, toolkit.include))}",
        f"-DVDITC_ARCHITECTURES={';'.join(wanted.architectures)}",
        f"-DCUTLASS_ROOT={cutlass or ''}",
    ]
    return made_of, options


def _host(wanted: Wanted) -> list[str]:
    """CMake's options for what is no kernel."""
    options = [f"-DTENSORRT_ROOT={wanted.tensorrt.resolve() if wanted.tensorrt else ''}", f"-DVDITC_PYTHON={sys.executable}"]
    if wanted.machine != host_machine():
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={wanted.machine}"]
    return options


def tensorrt_version(root: Path | None) -> str | None:
    """Of NvInferVersion.h, as 10.3.0; None without TensorRT."""
    if root is None:
        return None
    found = [p for place in ("include", ".") if (p := root / place / "NvInferVersion.h").is_file()]
    text = found[0].read_text() if found else ""
    # From 10.13 on NV_TENSORRT_MAJOR is another macro's name, which has the number.
    numbers = [re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? +(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(n[1] if n else "?" for n in numbers)


@contextmanager
def _locked(work: Path, progress: Progress) -> Iterator[Path]:
    """A work folder that no other process uses."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note(f"another process builds the plugin library in {work}; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield work


def _mirror(sources: Path, to: Path) -> None:
    """Copies of the sources; files whose bytes are the same stay untouched, so that Ninja goes by contents, not by times."""
    wanted = {p.relative_to(sources) for pattern in PATTERNS for p in sources.glob(pattern)}
    for path in [p for p in to.rglob("*") if p.is_file() and p.relative_to(to) not in wanted]:
        path.unlink()
    for name in sorted(wanted):
        data = (sources / name).read_bytes()
        if not (to / name).is_file() or (to / name).read_bytes() != data:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(data)


def _compile(work: Path, sources: Path, options: list[str], jobs: int | None, progress: Progress) -> int:
    """Configure and build in the work folder; how many objects were made."""
    _mirror(sources, work / "plugins")
    cmake, ninja = find_program("cmake"), find_program("ninja")
    launcher = f"{sys.executable};{work / 'plugins' / 'compile_log.py'}"
    launchers = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={launcher}" for language in ("CXX", "CUDA")]
    configure = [
        cmake,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-S",
        str(work / "plugins"),
        "-B",
        str(work / "build"),
        *options,
        *launchers,
    ]
    _run(configure, work / "configure.log", None)
    before = _objects(work / "build")
    parallel = str(jobs or os.cpu_count() or 1)
    _run([cmake, "--build", str(work / "build"), "--parallel", parallel], work / "build.log", progress)
    after = _objects(work / "build")
    return sum(before.get(name) != time for name, time in after.items())


def _objects(folder: Path) -> dict[Path, int]:
    """What there is of logs, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.log.json")}


def _run(command: list[str], log: Path, progress: Progress | None) -> None:
    """Run a step of CMake; lines as "[3/12] ..." are reported. VditcError with the end of what it said."""
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    with (
        log.open("w") as kept,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as job,
    ):
        assert job.stdout is not None
        for line in job.stdout:
            kept.write(line)
            kept.flush()
            if progress is not None and (step := re.match(r"\[\d+/\d+\] .*?([\w.]+)\.o$", line.strip())):
                progress.note(f"{line.partition(']')[0]}] {step[1]}")
    if job.returncode:
        raise VditcError(found=_complaint(log.read_text()), wanted="sources that compile", where=" ".join(command[:2]), fix=f"see {log}")


def _complaint(said: str) -> str:
    """The lines that say what is wrong, else the last ones; command lines left out."""
    lines = [line for line in said.strip().splitlines() if line.strip() and "compile_log.py" not in line]
    wrong = [n for n, line in enumerate(lines) if re.search(r"\berror\b|CMake Error|undefined reference", line, re.IGNORECASE)]
    picked = sorted({m for n in wrong[:5] for m in range(n, min(n + 4, len(lines)))}) or range(max(len(lines) - 20, 0), len(lines))
    return "\n".join(lines[n] for n in picked)


def _keep(made: Path, kept: Path, made_of: dict[str, Any], digest: str) -> None:
    """Copy the library into the cache with its facts, the facts last."""
    library = made / LIBRARY
    logs = {str(p.relative_to(made)): json.loads(p.read_text()) for p in sorted(made.rglob("*.log.json")) if _is_of_now(p, made)}
    kernels = [usage for log in logs.values() for usage in usages(log["report"])]
    facts = {
        **made_of,
        "digest": digest,
        "abi": ABI_VERSION,
        "glibc": newest_glibc(library),
        "needs": needed(library),
        "bytes": library.stat().st_size,
        "sha256": sha256(library),
        "kernels": [dataclasses.asdict(usage) for usage in kernels],
    }
    kept.mkdir(parents=True, exist_ok=True)
    with whole_file(kept / LIBRARY) as temporary:
        shutil.copy(library, temporary)
    times = {name.removesuffix(".o.log.json"): {k: log[k] for k in ("seconds", "cpu_seconds", "megabytes")} for name, log in logs.items()}
    write_text(kept / TIMES, json.dumps(times, indent=1) + "\n")
    write_text(kept / FACTS, json.dumps(facts, indent=1) + "\n")


def _is_of_now(log: Path, made: Path) -> bool:
    """Whether the log's source is still one: Ninja leaves objects of removed sources."""
    source = re.sub(r"\.o\.log\.json$", "", log.name)
    return (made.parent / "plugins" / log.parent.name / source).is_file()


def newest_glibc(library: Path) -> str | None:
    """Newest version of glibc that the library asks for, as "2.34"; None without readelf."""
    found = {tuple(map(int, m.split("."))) for m in re.findall(r"GLIBC_(\d+\.\d+)", _readelf("-V", library))}
    return ".".join(map(str, max(found))) if found else None


def needed(library: Path) -> list[str]:
    """Libraries that it is linked with."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", _readelf("-d", library))


def _readelf(option: str, library: Path) -> str:
    readelf = shutil.which("readelf")
    return subprocess.run([readelf, "-W", option, library], capture_output=True, text=True, check=True).stdout if readelf else ""
