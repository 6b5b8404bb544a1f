"""How much memory a build may take on a board whose CPU and GPU share it, and whether there is enough.

    usable     = what the system calls available (MemAvailable) - 768 MiB for CUDA's context and what others allocate meanwhile
    build      = the builder's estimate for one graph + activations + workspace          (graphs are built one at a time)
    workspace  = usable - builder - activations, at least 256 MiB                        -> option workspace
    tactics    = usable - builder, what a kernel that is timed may allocate in all       -> option tactic-memory
    run        = the weights of all graphs + activations, without workspace

What the builder holds beside the weights themselves is ordinary memory and may lie in swap; what the GPU reads may not. For a board
that is not there, 0.91 of its size is counted, of which the system takes 1 GiB: an 8 GB Orin Nano shows 7486 MB, a 64 GB AGX Orin 62795
MB (published tegrastats). The estimate for the builder was measured with TensorRT-RTX; on a Jetson: not run, needs one.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from vditc.build_options import BuildOptions
from vditc.device.package import DeviceGraph, DevicePackage
from vditc.errors import InputError

BOARDS = (8, 16, 32, 64)  # GB
RESERVE = 768 << 20
LEAST_WORKSPACE = 256 << 20
SEEN, SYSTEM = 0.91, 1 << 30


@dataclasses.dataclass(frozen=True)
class BoardMemory:
    """Bytes. `available` is what programs could still allocate, `swap` what is free of it."""

    available: int
    swap: int = 0
    name: str = "this machine"

    @property
    def usable(self) -> int:
        """See the head of this file."""
        return max(0, self.available - RESERVE)

    @classmethod
    def of_board(cls, size: float) -> BoardMemory:
        """Of a board with so many GB, without swap."""
        return cls(int(size * 2**30 * SEEN) - SYSTEM, 0, f"a board of {size:g} GB")

    @classmethod
    def allowed(cls, options: BuildOptions) -> BoardMemory | None:
        """What the options allow to a build, whatever is free; None where they say nothing."""
        return None if options.memory is None else cls(options.memory + RESERVE, 0, f"this machine with --engine memory={options.memory}B")

    @classmethod
    def here(cls, meminfo: Path = Path("/proc/meminfo")) -> BoardMemory:
        """Of this machine, now. InputError without procfs."""
        try:
            text = meminfo.read_text()
            available, swap = (int(_kilobytes(text, key)) * 1024 for key in ("MemAvailable", "SwapFree"))
        except (OSError, ValueError) as error:
            raise InputError(
                found=str(error), wanted="MemAvailable and SwapFree", where=str(meminfo), fix="say how much there is: --memory GB"
            ) from error
        return cls(available, swap)


@dataclasses.dataclass(frozen=True)
class Share:
    """What one graph's build may take in bytes, as build options say it, and how much of the builder is expected in swap."""

    workspace: int
    tactic_memory: int
    swapped: int = 0


def share(package: DevicePackage, graph: DeviceGraph, board: BoardMemory) -> Share:
    """By the rule at the head of this file; InputError, with the figures, when the engine cannot be built or could not run."""
    activations = package.activations or 0
    run = package.weights + activations
    if run > board.usable:
        raise InputError(
            found=f"{gib(board.usable)} usable",
            wanted=f"{gib(run)} to run it: {gib(package.weights)} of weights and {gib(activations)} of activations",
            where=f"target {package.target} on {board.name}",
            fix="compile with a smaller --profile or a recipe of fewer bits, or take a larger board",
        )
    workspace = board.usable - graph.builder - activations
    if (lacking := LEAST_WORKSPACE - workspace) > 0:
        coldest = max(0, graph.builder - graph.weights)
        if lacking > min(board.swap, coldest):
            raise InputError(
                found=f"{gib(board.usable)} usable and {gib(board.swap)} of swap",
                wanted=f"{gib(graph.builder + activations + LEAST_WORKSPACE)} to build {graph.name}: {gib(graph.builder)} for the builder, "
                f"{gib(activations)} of activations, {gib(LEAST_WORKSPACE)} of workspace",
                where=f"target {package.target} on {board.name}",
                fix=_fix(lacking, coldest, board),
            )
    workspace = max(workspace, LEAST_WORKSPACE)
    asked = package.options  # may ask for less than there is
    return Share(
        workspace=min(workspace, asked.workspace or workspace),
        tactic_memory=min(workspace + activations, asked.tactic_memory or workspace + activations),
        swapped=max(0, lacking),
    )


def _fix(lacking: int, coldest: int, board: BoardMemory) -> str:
    if lacking <= coldest:
        size = -(-(lacking - board.swap) // 2**30) + 1
        return (
            f"end other programs (sudo systemctl isolate multi-user.target), or add {size} GiB of swap: sudo fallocate -l {size}G "
            "/swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile; or compile with --segments or "
            "fewer bits"
        )
    return "compile with --segments, a recipe of fewer bits or a smaller --profile, or build on a board with more memory"


def gib(count: int) -> str:
    """ "7.31 GiB"."""
    return f"{count / 2**30:.2f} GiB"


def _kilobytes(text: str, key: str) -> str:
    match = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"no {key}")
    return match[1]
