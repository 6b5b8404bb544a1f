"""Compiles the kernels that host objects ask for by NVRTC and writes the C++ file that holds them: a step of CMake's with VDITC_NVRTC.

    python nvrtc_units.py --nvrtc libnvrtc.so.12 --nm nm --sources plugins --arch 87 --out FOLDER/cubins.cpp OBJECT...

An object asks for a kernel by naming it: `vditc::driver::Name<Kernel>` of native/driver.h, whose type name is in its table of symbols. Kernels of one
source are one program, which includes the headers that the source includes with quotation marks. Runs as a script, so it imports nothing of vditc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

_NAME = re.compile(r"^typeinfo name for vditc::driver::Name<(.*)>$")
_FLAGS = ("-std=c++17", "--device-as-default-execution-space", "-DVDITC_NVRTC", "--ptxas-options=-v", "-w")


class Nvrtc:
    """NVIDIA's run-time compiler."""

    def __init__(self, path: str) -> None:
        self.native = ctypes.CDLL(path)
        self.native.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        """SystemExit with what it says, unless it succeeds."""
        if status := getattr(self.native, name)(*arguments):
            sys.exit(f"error: {name}: {self.native.nvrtcGetErrorString(status).decode()}")

    def text(self, program: ctypes.c_void_p, what: str) -> bytes:
        """What it has for a program: ProgramLog or CUBIN."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        out = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, out)
        return out.raw

    def compile(self, name: str, source: str, options: list[str], kernels: list[str]) -> tuple[bytes, list[str], str]:
        """Machine code, the kernels' symbols in it, and what ptxas says. SystemExit with the errors of a program that does not compile."""
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        for kernel in kernels:
            self.call("nvrtcAddNameExpression", program, kernel.encode())
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.native.nvrtcCompileProgram(program, len(options), given)
        said = self.text(program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            sys.exit(f"{said}\nerror: {name} does not compile under NVRTC")
        symbols = []
        for kernel in kernels:
            symbol = ctypes.c_char_p()
            self.call("nvrtcGetLoweredName", program, kernel.encode(), ctypes.byref(symbol))
            symbols.append((symbol.value or b"").decode())
        cubin = self.text(program, "CUBIN")
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return cubin, symbols, said


def asked_for(nm: str, made: Path) -> dict[str, str]:
    """Kernels that an object starts: the name that it looks them up by -> their type as C++ has it."""
    symbols = [line.split()[-1] for line in subprocess.run([nm, made], capture_output=True, text=True, check=True).stdout.splitlines()]
    names = [s for s in symbols if s.startswith("_ZTS")]
    readable = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name.removeprefix("_ZTS"): match[1].strip() for name, text in zip(names, readable, strict=True) if (match := _NAME.match(text))}
    if hidden := [kernel for kernel in found.values() if "(anonymous namespace)" in kernel]:
        sys.exit(f"error: {made}: found the kernel {hidden[0]}; wanted a name that NVRTC can say; take it out of the anonymous namespace")
    return found


def program_of(source: Path) -> str:
    """What of a .cu file is for GPUs: its own headers."""
    headers = re.findall(r'^#include ("[^"]+")', source.read_text(), re.MULTILINE)
    return "".join(f"#include {header}\n" for header in headers if header != '"native/driver.h"')


def main() -> None:
    """Everything, in the order of the objects."""
    parser = argparse.ArgumentParser()
    for option in ("--nvrtc", "--nm", "--sources", "--arch", "--out"):
        parser.add_argument(option, required=True)
    parser.add_argument("objects", nargs="*", type=Path)
    given = parser.parse_args()
    nvrtc, sources, out = Nvrtc(given.nvrtc), Path(given.sources), Path(given.out)
    entries: dict[str, tuple[str, int]] = {}
    images: list[tuple[int, str, Path]] = []
    for unit, made in enumerate(given.objects):
        name = f"{made.parent.name}/{made.name.removesuffix('.o')}"
        if not (kernels := asked_for(given.nm, made)):
            continue
        begin, report = time.monotonic(), []
        for arch in given.arch.split(","):
            options = [*_FLAGS, f"--gpu-architecture=sm_{arch}", f"-I{sources}/native/nvrtc", f"-I{sources}"]
            cubin, symbols, said = nvrtc.compile(name, program_of(sources / name), options, [f"vditc::entry<{k}>" for k in kernels.values()])
            image = out.parent / f"{name}.{arch}.cubin"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(cubin)
            images.append((unit, arch, image))
            report += said.splitlines()
            for kernel, symbol in zip(kernels, symbols, strict=True):
                entries.setdefault(kernel, (symbol, unit))
        facts = {
            "seconds": round(time.monotonic() - begin, 1),
            "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "report": report,
        }
        (out.parent / f"{name}.o.log.json").write_text(json.dumps(facts))
    out.write_text(table(entries, images))


def table(entries: dict[str, tuple[str, int]], images: list[tuple[int, str, Path]]) -> str:
    """The C++ file: the images through the assembler, and driver.h's tables."""
    lines = ["// Generated by nvrtc_units.py.", '#include "native/driver.h"']
    for n, (_, _, path) in enumerate(images):
        lines.append(f'asm(".section .rodata.vditc_cubins, \\"a\\"\\n.balign 64\\nvditc_cubin_{n}: .incbin \\"{path}\\"\\n.previous");')
        lines.append(f'extern "C" __attribute__((visibility("hidden"))) const unsigned char vditc_cubin_{n}[];')
    lines.append("namespace vditc::driver {")
    images_of = [f"{{{unit}, {re.sub('[a-z]', '', arch)}, vditc_cubin_{n}}}" for n, (unit, arch, _) in enumerate(images)]
    entries_of = [f'{{"{kernel}", "{symbol}", {unit}}}' for kernel, (symbol, unit) in entries.items()]
    for kind, plural, rows in (("Image", "IMAGE", images_of), ("Entry", "ENTRY", entries_of)):
        filled = rows or ["{}"]  # C++ has no empty arrays
        lines.append(f"const {kind} {'IMAGES' if plural == 'IMAGE' else 'ENTRIES'}[] = {{{', '.join(filled)}}};")
        lines.append(f"const int {plural}_COUNT = {len(rows)};")
    return "\n".join([*lines, "}  // namespace vditc::driver", ""])


if __name__ == "__main__":
    main()
