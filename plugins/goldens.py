"""Runs golden files against a library: every tactic must give what numpy gave.

    python -m vditc.plugins.goldens --library libvditc_plugins.so [--goldens FOLDER] [--only NAME ...] [--refused] [--json]

Nothing but Python and numpy is needed, so it runs on the device that an engine is for; memory comes from `vditc_device_allocate`.
Exit code 1 when an output is wrong, 2 when nothing could be run.

| operator | compared |
|---|---|
| qlinear | y; without groups crc32 of the accumulators, int32 [m, n] row by row, little endian: `accumulators` of the metadata |
| quantize_token | codes, scale, total, share0 ..., sum, by `codes_off` and `scale_off` of the metadata |
| qattention | y; crc32 of the products of codes, int32 [batch, heads, queries, keys]: `scores` of the metadata |

Where `codes_off` is not 0, that share of the codes may be off by 1 and a scale by `scale_off` of itself; a weighed sum always. Sums must be
those of the codes that came out. Outputs begin as poison, and nothing behind their ends or behind the workspace's may change.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.plugins.device_memory import DeviceMemory
from vditc.plugins.golden_file import Golden, goldens_in
from vditc.plugins.interface import (
    ANY_TACTIC,
    QAttentionKeys,
    QAttentionProblem,
    QAttentionTensors,
    QLinearProblem,
    QLinearTensors,
    QuantizeTokenProblem,
    QuantizeTokenTensors,
    filled,
    listed_tactics,
    tactics,
    workspace,
)
from vditc.plugins.library import NO_KERNEL, KernelError, Library
from vditc.plugins.packing import unpack, unpack_tokens

Array = npt.NDArray[Any]
FEW = 3  # codes that may be off by 1 where `codes_off` of all is less: small problems


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one file and one tactic. `wrong`: what is not as it must be; `skipped`: why it was not run."""

    golden: str
    tactic: str
    wrong: str | None = None
    skipped: str | None = None

    def __str__(self) -> str:
        said = self.wrong or (f"not run: {self.skipped}" if self.skipped else "ok")
        return f"{self.golden:42} {self.tactic:14} {said}"


def check_golden(library: Library, golden: Golden) -> list[Outcome]:
    """An outcome for every tactic on the current device; operators without tactics have one, "kernel"."""
    if golden.operator not in _CHECKS:
        return [Outcome(golden.name, "-", skipped=f"operator {golden.operator} is not known; there are {', '.join(_CHECKS)}")]
    try:
        return list(_CHECKS[golden.operator](library, golden))
    except (KernelError, AttributeError) as error:  # no such function: a library without that operator
        return [Outcome(golden.name, "-", wrong=str(error))]


def compare(golden: Golden, name: str, found: Array) -> str | None:
    """What is wrong with an output, compared by its tolerance, or None."""
    wanted, allowed = golden.tensors[name], golden.tensors.get(f"{name}.tolerance")
    if allowed is None:
        bad = found.view(np.uint8).reshape(*found.shape, -1) != wanted.view(np.uint8).reshape(*wanted.shape, -1)
        bad = bad.any(-1)
    else:
        bad = ~(np.abs(golden.wide(name, found).astype(np.float64) - golden.wide(name)) <= allowed)  # NaN is never right
    return _first(name, bad, *((golden.wide(name, found), golden.wide(name)) if wanted.dtype != np.int8 else (found, wanted)))


def _first(name: str, bad: npt.NDArray[np.bool_], found: Array, wanted: Array) -> str | None:
    if not bad.any():
        return None
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{name}: {int(bad.sum())} of {bad.size} are wrong, the first at {list(at)}: {found[at]}; wanted {wanted[at]}"


def _qlinear(library: Library, golden: Golden) -> Iterator[Outcome]:
    problem = filled(QLinearProblem, golden.problem)
    sm = library.sm
    listed = listed_tactics(library, problem, sm)
    if not listed:
        yield Outcome(golden.name, "-", skipped=f"no tactic for it on sm_{sm}")
        return
    for tactic, name in {ANY_TACTIC: "any", **tactics(library)}.items():
        try:
            yield Outcome(golden.name, name, _qlinear_tactic(library, golden, problem, tactic, sm))
        except KernelError as error:
            # What is not listed may run nevertheless, and must be right then.
            refused = error.status == NO_KERNEL and tactic not in (ANY_TACTIC, *listed)
            yield Outcome(golden.name, name, **{"skipped" if refused else "wrong": str(error)})


def _qlinear_tactic(library: Library, golden: Golden, problem: Any, tactic: int, sm: int) -> str | None:
    size = workspace(library, problem, tactic, sm)
    y = golden.tensors["y"]
    with DeviceMemory(library) as memory:
        inputs = [name for name, _ in QLinearTensors._fields_ if name != "y" and name in golden.tensors]
        out = memory.empty(y.nbytes)
        given = filled(QLinearTensors, {**{name: memory.put(golden.tensors[name]) for name in inputs}, "y": out})
        scratch = (ctypes.c_void_p(memory.empty(size)), ctypes.c_size_t(size), None)
        call = (ctypes.byref(problem), ctypes.byref(given), ctypes.c_int32(tactic))
        library.call("vditc_qlinear_launch", *call, *scratch)
        wrong = [compare(golden, "y", memory.get(out, y.shape, y.dtype))]
        if (wanted := golden.facts.get("accumulators")) is not None:
            sums = memory.empty(4 * y.size)
            library.call("vditc_qlinear_accumulators", *call, ctypes.c_void_p(sums), *scratch)
            wrong.append(_accumulators(golden, memory.get(sums, y.shape, np.int32), wanted))
        memory.check()
    return "; ".join(filter(None, wrong)) or None


def _accumulators(golden: Golden, found: npt.NDArray[np.int32], wanted: str) -> str | None:
    if (crc := crc_of(found)) == wanted:
        return None
    p, x = golden.problem, golden.tensors["x"]
    weight = unpack(golden.tensors["weight"], p["n"], p["k"], p["bits"], unsigned=bool(p.get("unsigned_weights")))
    exact = (unpack_tokens(x) if p.get("packed") else x).astype(np.int64) @ weight.astype(np.int64).T
    return _first(f"accumulators (crc32 {crc}; wanted {wanted})", found != exact, found, exact) or f"crc32 {crc}; the file says {wanted}"


def crc_of(accumulators: npt.NDArray[np.int32]) -> str:
    """Eight hexadecimal digits: crc32 of int32 [..., n], row by row, little endian."""
    return f"{zlib.crc32(np.ascontiguousarray(accumulators, '<i4').tobytes()):08x}"


def _quantize_token(library: Library, golden: Golden) -> Iterator[Outcome]:
    problem, tensors = filled(QuantizeTokenProblem, golden.problem), golden.tensors
    outputs = [name for name in ("codes", "scale", "total", "share0", "share1", "share2", "share3", "sum") if name in tensors]
    with DeviceMemory(library) as memory:
        given = QuantizeTokenTensors()
        for name in (field[0] for field in QuantizeTokenTensors._fields_):
            if name in tensors and name not in outputs:
                setattr(given, name, memory.put(tensors[name]))
        addresses = {name: memory.empty(tensors[name].nbytes) for name in outputs}
        for name, address in addresses.items():
            if name.startswith("share"):
                given.share[int(name[5:])] = address
            else:
                setattr(given, name, address)
        library.call("vditc_quantize_token_launch", ctypes.byref(problem), ctypes.byref(given), None)
        found = {name: memory.get(address, tensors[name].shape, tensors[name].dtype) for name, address in addresses.items()}
        memory.check()
    yield Outcome(golden.name, "kernel", "; ".join(filter(None, _compare_codes(golden, found))) or None)


def _compare_codes(golden: Golden, found: dict[str, Array]) -> Iterator[str | None]:
    facts, tensors = golden.facts, golden.tensors
    if "sum" in found:
        yield compare(golden, "sum", found["sum"])
    codes, wanted = ((unpack_tokens(a) if golden.problem.get("packed") else a).astype(np.int64) for a in (found["codes"], tensors["codes"]))
    if facts["codes_off"]:
        off = np.abs(codes - wanted)
        yield _first("codes (by more than 1)", off > 1, codes, wanted)
        if (count := int((off > 0).sum())) > (most := max(int(facts["codes_off"] * off.size), FEW)):
            yield f"codes: {count} of {off.size} are off by 1; wanted at most {most}"
    else:
        yield _first("codes", codes != wanted, codes, wanted)
    if "scale" in found:
        limit = facts["scale_off"] * tensors["scale"] if facts["codes_off"] else np.zeros_like(tensors["scale"])
        yield _first("scale", ~(np.abs(found["scale"] - tensors["scale"]) <= limit), found["scale"], tensors["scale"])
    scale = found.get("scale", tensors.get("given"))
    assert scale is not None
    scale = scale.reshape(-1)
    if "total" in found:
        total = codes.sum(-1).astype(np.float32) * scale
        yield _first("total", found["total"].reshape(-1) != total, found["total"].reshape(-1), total)
    for r in range(golden.problem.get("shares", 0)):
        weighed = codes * tensors["alpha"][r].astype(np.float64)
        share, limit = scale * weighed.sum(-1), facts["scale_off"] * scale * np.abs(weighed).sum(-1)
        came = found[f"share{r}"].reshape(-1)
        yield _first(f"share{r}", ~(np.abs(came - share) <= limit), came, share)


def _qattention(library: Library, golden: Golden) -> Iterator[Outcome]:
    problem, tensors = filled(QAttentionProblem, golden.problem), golden.tensors
    size, y = ctypes.c_size_t(), tensors["y"]
    library.call("vditc_qattention_workspace", ctypes.byref(problem), ctypes.byref(size))
    with DeviceMemory(library) as memory:
        out = memory.empty(y.nbytes)
        given = filled(
            QAttentionTensors, {**{name: memory.put(tensors[name]) for name in ("q", "k", "v", "mask") if name in tensors}, "y": out}
        )
        call, scratch = (ctypes.byref(problem), ctypes.byref(given)), (ctypes.c_void_p(memory.empty(size.value)), size, None)
        library.call("vditc_qattention_launch", *call, *scratch)
        wrong = [compare(golden, "y", memory.get(out, y.shape, y.dtype))]
        shape = tuple(golden.problem[name] for name in ("batch", "heads", "queries", "keys"))
        sums = memory.empty(4 * int(np.prod(shape)))
        library.call("vditc_qattention_scores", *call, ctypes.c_void_p(sums), ctypes.byref(QAttentionKeys()), *scratch)
        if (crc := crc_of(memory.get(sums, shape, np.int32))) != golden.facts["scores"]:
            wrong.append(f"products of codes: crc32 {crc}; wanted {golden.facts['scores']}")
        memory.check()
    yield Outcome(golden.name, "kernel", "; ".join(filter(None, wrong)) or None)


_CHECKS: dict[str, Callable[[Library, Golden], Iterator[Outcome]]] = {
    "qlinear": _qlinear,
    "quantize_token": _quantize_token,
    "qattention": _qattention,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    ask = argparse.ArgumentParser(prog="python -m vditc.plugins.goldens", description="Run golden files against a library.")
    ask.add_argument("--library", type=Path, required=True, help="libvditc_plugins.so")
    default = Path(__file__).resolve().parents[1] / "tests" / "plugins" / "goldens"
    ask.add_argument("--goldens", type=Path, default=default, help="folder of golden files [default: the checkout's]")
    ask.add_argument("--only", action="append", default=[], help="names that begin so")
    ask.add_argument("--refused", action="store_true", help="also name the tactics that do not take a problem, and why")
    ask.add_argument("--json", action="store_true", help="one JSON object a line")
    args = ask.parse_args(arguments)
    try:
        library = Library(args.library)
        goldens = [g for g in goldens_in(args.goldens) if not args.only or g.name.startswith(tuple(args.only))]
        if not goldens:
            raise InputError(
                found=f"no name that begins with {' or '.join(args.only)}", wanted="a name", where=str(args.goldens), fix="see the folder"
            )
        if (sm := library.sm) < 0:
            said = library.native.vditc_last_error().decode()
            raise InputError(
                found=said, wanted="a CUDA GPU", where="this machine", fix="run it on the device, or --library with the emulated one"
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes = []
    for golden in goldens:
        for outcome in check_golden(library, golden):
            outcomes.append(outcome)
            if args.json:
                print(json.dumps({**dataclasses.asdict(outcome), "sm": sm}), flush=True)
            elif args.refused or outcome.skipped is None or outcome.tactic == "-":
                print(outcome, flush=True)
    wrong, skipped = sum(o.wrong is not None for o in outcomes), sum(o.skipped is not None for o in outcomes)
    if not args.json:
        print(f"sm_{sm}: {len(outcomes) - wrong - skipped} right, {wrong} wrong, {skipped} not run")
    return 1 if wrong else 0 if len(outcomes) > skipped else 2


if __name__ == "__main__":
    sys.exit(main())
