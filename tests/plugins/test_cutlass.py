"""QLinear's tactics of CUTLASS as far as no GPU is needed: the epilogue's arithmetic, who stores what, and the machine code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.plugins.emulated import FLAGS, SOURCES
from vditc.plugins.resources import usages
from vditc.plugins.toolkit import find_cutlass, find_toolkit, host_machine
from vditc.plugins.wheels import cache_home, unpacked

HERE = Path(__file__).parent
NVDISASM = "nvidia-cuda-nvdisasm==13.5.37"
# Source, architecture, what a product of tiles is called there, how many of them an iteration of each kernel has at least.
KERNELS = [
    ("sm80", "80", "IMMA", 64),
    ("sm80", "120a", "IMMA", 64),
    ("sm90", "90a", "IGMMA", 4),
    ("sm100", "100a", "UTCIMMA", 4),
    ("sm100", "110a", "UTCIMMA", 4),
]


def run(*command: str | Path) -> str:
    """What a program says; an assertion when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def test_eight_columns_equal_one_after_another(tmp_path: Path) -> None:
    """Bit by bit, for every combination of what an epilogue has; nothing outside of the output is written."""
    flags = [f for f in FLAGS if f not in ("-O2", "-fPIC", "-g1")]
    emulator = [SOURCES / "native" / f"{name}.cpp" for name in ("emulator", "emulator_mma", "status")]
    run("g++", *flags, "-O1", "-Werror", "-Wno-unknown-pragmas", HERE / "epilogue_vector.cpp", *emulator, "-o", tmp_path / "test")
    assert run(tmp_path / "test") == "1728 problems\n"


def test_sizes_that_its_grids_have(tmp_path: Path) -> None:
    """Which problems a library with CUTLASS leaves to it, up to the greatest there are."""
    flags = [f"-DVDITC_CUTLASS_SM{sm}" for sm in (80, 90, 100)]
    run(
        "g++",
        *FLAGS,
        *flags,
        "-Werror",
        HERE / "cutlass_sizes.cpp",
        SOURCES / "qlinear" / "problem.cpp",
        SOURCES / "native" / "status.cpp",
        "-o",
        tmp_path / "test",
    )
    assert run(tmp_path / "test") == "24 problems\n"


@pytest.fixture
def nvcc() -> Path:
    """Skips without a toolkit or CUTLASS."""
    try:
        find_cutlass(cache_home())
        return find_toolkit(host_machine(), cache_home()).nvcc
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_every_output_has_one_thread(nvcc: Path, tmp_path: Path) -> None:
    """By CUTLASS's own layouts, of each shape of tile."""
    dry = run(nvcc, "--dryrun", "-x", "cu", "-E", "/dev/null")
    top = Path(next(line for line in dry.splitlines() if line.startswith("#$ TOP=")).partition("=")[2])
    include = [f"-I{folder}" for folder in (SOURCES, find_cutlass(cache_home()) / "include", top / "include", top / "include" / "cccl")]
    # Headers that are nvcc's alone, and functions of a device that nothing here calls.
    flags = ["-std=c++17", "-O1", "-w", "-fpermissive", "-Wl,--unresolved-symbols=ignore-all"]
    run("g++", *flags, *include, HERE / "cutlass_coordinates.cpp", "-o", tmp_path / "test")
    assert len(run(tmp_path / "test").splitlines()) == 12  # six shapes, the first and the last tile


@pytest.mark.slow
@pytest.mark.parametrize(("source", "architecture", "product", "least"), KERNELS)
def test_machine_code(source: str, architecture: str, product: str, least: int, nvcc: Path, tmp_path: Path) -> None:
    """Products of int8 in a loop that touches no local memory; nothing of 128 accumulators is spilled around the epilogue either."""
    cubin = tmp_path / "kernels.cubin"
    said = run(
        nvcc,
        *("-std=c++17", "-O3", "-DNDEBUG", "-DVDITC_CUTLASS", "--expt-relaxed-constexpr", "-Xptxas=-v"),
        *("-cubin", f"-arch=sm_{architecture}"),
        *(f"-I{SOURCES}", f"-I{find_cutlass(cache_home())}/include", SOURCES / "qlinear" / f"cutlass_{source}.cu", "-o", cubin),
    )
    kernels = usages(said.splitlines())
    assert len(kernels) == 2
    assert not [k for k in kernels if k.stack or k.spill_stores or k.spill_loads]
    nvdisasm = next(unpacked(NVDISASM, cache_home(), instead="connect to PyPI once").glob("nvidia/*/bin/nvdisasm"))
    nvdisasm.chmod(0o755)
    code = run(nvdisasm, "-c", cubin)
    loops = loops_around(product, code)
    assert len(loops) >= 2
    assert max(sum(product in i for i in loop) for loop in loops) >= least
    for loop in loops:
        assert not [i for i in loop if re.match(r"(LDL|STL)\b", i)], loop


def loops_around(product: str, code: str) -> list[list[str]]:
    """The instructions of the innermost loops around products, from what nvdisasm prints: labels, and branches back to them."""
    found: list[list[str]] = []
    for kernel in re.split(r"^\s*\.section\s", code, flags=re.MULTILINE)[1:]:
        labels: dict[str, int] = {}
        body: list[str] = []
        back: list[tuple[int, int]] = []
        for line in kernel.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(body)
            elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([^;]*);", line):
                body.append(instruction[1])
                target = re.search(r"^BRA.*`\((\.L_x_\d+)\)", instruction[1])
                if target and target[1] in labels:
                    back.append((labels[target[1]], len(body)))
        at = [i for i, instruction in enumerate(body) if product in instruction]
        around = {min(spans, key=lambda span: span[1] - span[0]) for i in at if (spans := [b for b in back if b[0] <= i < b[1]])}
        inner = [b for b in around if not any(c != b and b[0] <= c[0] and c[1] <= b[1] for c in around)]
        found += [body[begin:end] for begin, end in sorted(inner)]
    return found
