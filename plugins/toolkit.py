"""The compilers of the plugin library: nvcc of a CUDA toolkit or of PyPI's wheels, a C++ compiler, CMake, Ninja, and CUTLASS's headers."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from vditc.errors import InputError
from vditc.plugins.wheels import CUTLASS, unpacked

INSTALL = "install a CUDA toolkit 13.0 and put nvcc on PATH (or set CUDA_HOME), or: pip install 'vditc[plugins]'"
MACHINES = ("x86_64", "aarch64")
_OLDEST = (13, 0)  # the first that knows sm_110


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """What compiles for one machine."""

    nvcc: Path
    version: str  # 13.0.88
    cudart: Path  # folder of libcudart_static.a of the machine that the library is for
    include: tuple[Path, ...]  # folders of headers that nvcc does not find by itself
    cxx: str
    cxx_version: str

    @property
    def cuda(self) -> int:
        """Major version."""
        return int(self.version.partition(".")[0])


def host_machine() -> str:
    """x86_64 or aarch64; InputError on others."""
    if (machine := platform.machine()) not in MACHINES:
        raise InputError(found=machine, wanted=" or ".join(MACHINES), where="this machine", fix="build on one of them")
    return machine


def find_program(name: str, extra: str = "plugins") -> str:
    """Of PATH, or of this Python's own scripts. InputError without it."""
    if found := shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts")):
        return found
    raise InputError(
        found=f"no {name}", wanted=name, where="PATH", fix=f"install it (Debian: cmake, ninja-build), or: pip install 'vditc[{extra}]'"
    )


def find_nvcc() -> Path:
    """nvcc of CUDA_HOME, of PATH, or of the wheels beside this Python, in this order."""
    if home := os.environ.get("CUDA_HOME"):
        if (nvcc := Path(home, "bin", "nvcc")).is_file():
            return nvcc
        raise InputError(
            found=f"no {nvcc}", wanted="a CUDA toolkit", where=f"CUDA_HOME={home}", fix="correct or unset CUDA_HOME; " + INSTALL
        )
    if found := shutil.which("nvcc"):
        return Path(found)
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for nvcc in sorted(Path(folder).glob("cu*/bin/nvcc")):
            return nvcc
    raise InputError(found="no nvcc", wanted="nvcc 13.0", where="CUDA_HOME, PATH and the wheels of this Python", fix=INSTALL)


def find_cxx(machine: str) -> str:
    """The C++ compiler for a machine: CXX where it is this one, else CXX_AARCH64 or CXX_X86_64, or Debian's cross compilers."""
    if machine == host_machine():
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
        fix = "install g++, or set CXX"
    else:
        variable = f"CXX_{machine.upper()}"
        prefix = f"{machine.replace('_', '-')}-linux-gnu-g++"
        names = [os.environ[variable]] if os.environ.get(variable) else [prefix, *(f"{prefix}-{n}" for n in (12, 13, 14, 11))]
        fix = f"install one (Debian: g++-12-{machine.replace('_', '-')}-linux-gnu), or set {variable}"
    for name in names:
        if found := shutil.which(name):
            return found
    raise InputError(found=f"no {' or '.join(names)}", wanted=f"a C++17 compiler for {machine}", where="PATH", fix=fix)


def find_toolkit(machine: str, cache: Path) -> Toolkit:
    """The compilers for a machine. InputError says which one is missing or too old."""
    nvcc = find_nvcc()
    version = _nvcc_version(nvcc)
    cxx = find_cxx(machine)
    top = _top(nvcc)
    include: tuple[Path, ...] = ()
    if machine == host_machine():
        cudart = _cudart_beside(nvcc, top)
    else:
        major, minor, *_ = version.split(".")
        name = f"nvidia-cuda-runtime{'' if int(major) >= 13 else f'-cu{major}'}~={major}.{minor}.0"
        wheel = unpacked(
            name, cache, machine=machine, instead=f"connect to PyPI once, or build on a {machine} machine that has the toolkit"
        )
        cudart = next(wheel.glob("nvidia/*/lib"))
        include = (cudart.with_name("include"), top / "include", top / "include" / "cccl")
    return Toolkit(nvcc, version, cudart, include, cxx, cxx_version(cxx))


def cxx_version(cxx: str) -> str:
    """What a C++ compiler says of itself, on one line."""
    return subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _nvcc_version(nvcc: Path) -> str:
    run = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    found = re.search(r"\bV(\d+)\.(\d+)\.(\d+)", run.stdout)
    if found is None:
        raise InputError(found=(run.stderr or run.stdout).strip()[-300:], wanted="a version", where=f"{nvcc} --version", fix=INSTALL)
    if (int(found[1]), int(found[2])) < _OLDEST:
        raise InputError(found=f"nvcc {found[0][1:]}", wanted="13.0 or newer", where=str(nvcc), fix=INSTALL)
    return found[0][1:]


def _top(nvcc: Path) -> Path:
    """Folder of nvcc's own toolkit, which may lie behind a wrapper of nvcc."""
    run = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", "/dev/null"], capture_output=True, text=True)
    if found := re.search(r"^#\$ TOP=(.*)$", run.stderr, re.MULTILINE):
        return Path(found[1]).resolve()
    raise InputError(found=run.stderr.strip()[-300:], wanted="TOP of its toolkit", where=f"{nvcc} --dryrun", fix=INSTALL)


def _cudart_beside(nvcc: Path, top: Path) -> Path:
    """libcudart_static.a's folder."""
    for folder in ("lib64", "lib", f"targets/{host_machine()}-linux/lib", "targets/sbsa-linux/lib"):
        if (made := top / folder).joinpath("libcudart_static.a").is_file():
            return made.resolve()
    raise InputError(
        found="no libcudart_static.a", wanted="the CUDA runtime as a static library", where=f"the toolkit of {nvcc}", fix=INSTALL
    )


def find_cutlass(cache: Path) -> Path:
    """Folder that holds include/cutlass: CUTLASS_ROOT, an installed nvidia-cutlass, or its wheel from PyPI, unpacked in the cache."""
    if said := os.environ.get("CUTLASS_ROOT"):
        root = Path(said)
    elif (spec := importlib.util.find_spec("cutlass_library")) and spec.origin:
        root = Path(spec.origin).parent / "source"
    else:
        instead = "connect to PyPI once, set CUTLASS_ROOT to a CUTLASS 4.2, or build without its tactics: --no-cutlass"
        root = unpacked(CUTLASS, cache, instead=instead) / "cutlass_library" / "source"
    if not (root / "include" / "cutlass" / "cutlass.h").is_file():
        raise InputError(
            found=f"no {root}/include/cutlass/cutlass.h", wanted="CUTLASS 4.2", where="CUTLASS_ROOT", fix="correct or unset CUTLASS_ROOT"
        )
    return root.resolve()


def cutlass_version(root: Path) -> str:
    """As its version.h says, "4.2.0"."""
    text = (root / "include" / "cutlass" / "version.h").read_text()
    numbers = [re.search(rf"#define CUTLASS_{part} +(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(n[1] if n else "?" for n in numbers)
