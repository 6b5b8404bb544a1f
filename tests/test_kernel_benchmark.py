"""benchmarks/kernels.py: what it runs, run once on the CPU; its arithmetic; what it says without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import kernel_shapes  # noqa: E402
import kernels  # noqa: E402
from kernel_timing import Call, Timer, peaks_of, row  # noqa: E402

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the program, on a machine without a GPU: exit code, what it said, and what it complained."""
    monkeypatch.setattr(kernels, "gpu_name", lambda: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmarks/kernels.py", *arguments])
        try:
            code = kernels.main()
        except SystemExit as ended:  # argparse's
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return call


def test_without_a_gpu_it_says_so(run: Run) -> None:
    code, said, complained = run()
    assert (code, said.count("not run: needs a GPU")) == (2, 4) and "nothing was measured" in complained
    code, said, _ = run("--case", "block", "--json")
    assert (code, json.loads(said)) == (2, {"case": "block", "result": "not run: needs a GPU"})
    code, said, _ = run("--list")
    assert (code, said.count("(not run: needs a GPU)")) == (0, 4)


def test_an_emulated_run_keeps_nothing(run: Run, tmp_path: Path) -> None:
    code, _, complained = run("--emulated", "--out", str(tmp_path / "kernels.json"))
    assert code == 2 and "has no times to keep" in complained and not list(tmp_path.iterdir())


def test_every_case_runs(run: Run) -> None:
    """Emulated: no times, no tactic that failed, and numbers that are right."""
    code, said, complained = run("--emulated", "--json")
    assert (code, complained) == (0, "")
    rows = [json.loads(line) for line in said.splitlines()]
    of = {case: [r for r in rows if r["case"] == case] for case in ("qlinear", "quantize-token", "qattention", "block")}
    assert {case: len(found) for case, found in of.items()} == {"qlinear": 3, "quantize-token": 14, "qattention": 1, "block": 1}
    for found in rows:
        assert found["seconds"] == found["runs"] == found["of_peak"] == {}
        # CPUs have not all of torch's attentions and no FP8 product on some; our own always run.
        assert all(name.split()[0] in ("bf16", "fp8") for name in found["failed"]), found["failed"]
    for found in of["qlinear"]:
        assert found["different_bits"] == []
        assert "w4a8 int4" in found["refused"] and not any("unpack" in name for name in found["refused"])
    assert max(of["qattention"][0]["relative_l2"].values()) < 0.02
    errors = of["block"][0]["relative_l2"]
    assert errors["w8a8"] < 0.02 < errors["w4a8"] < errors["w4a4"] < 0.3 and errors["w4a4"] == errors["w4a4 packed"]


class Clock(Timer):
    """A timer whose calls return the seconds that they take."""

    def __init__(self, runs: int) -> None:
        self.runs, self.peaks = runs, {"int8": 2.0, "bandwidth": 100.0}

    def _captured(self, call: Call) -> Call:
        call()
        return call

    def _once(self, call: Call) -> float:
        return float(call())


def test_medians_runs_and_failures() -> None:
    order: list[str] = []

    def slow() -> float:
        order.append("slow")
        return 0.1 + 0.01 * order.count("slow")

    def quick() -> float:
        order.append("quick")
        return 1e-3 if order.count("quick") % 10 else 1.0  # what is rare does not move a median

    def broken() -> float:
        raise RuntimeError("no such kernel\nmore")

    seconds, runs, failed = Clock(50).seconds({"slow": slow, "quick": quick, "broken": broken})
    assert runs == {"slow": 16, "quick": 50} and failed == {"broken": "RuntimeError: no such kernel"}  # 2 s of slow ones
    assert seconds["quick"] == 1e-3 and seconds["slow"] == pytest.approx(0.1 + 0.01 * 10.5)
    assert order[4:8] == ["slow", "quick", "slow", "quick"]  # in turn


def test_shares_of_peaks() -> None:
    """2e12 operations a second, 100e9 bytes: 4e9 operations take 2 ms, 1e9 bytes 10 ms."""
    work = {"a": {"int8": 4e9, "bytes": 1e9}, "b": {"bytes": 1e9}, "c": {"fp8": 1.0, "bytes": 1e9}}
    found = row(Clock(10), {"case": "x"}, {name: lambda: 0.02 for name in work}, work)
    assert found["of_peak"] == {"a": 0.1} and found["of_floor"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("gpu", "int8"), [("NVIDIA H200", 1979), ("NVIDIA H100 80GB HBM3", 1979), ("NVIDIA L4", 242), ("NVIDIA L40S", 733), ("NVIDIA T4", None)]
)
def test_the_table_of_peaks(gpu: str, int8: float | None) -> None:
    found = peaks_of(gpu)
    assert found.get("int8") == int8 and (int8 is not None or found["source"] == "no entry for NVIDIA T4 in gpu_peaks.toml")


def test_shapes_are_those_of_the_models() -> None:
    found = kernel_shapes.shapes(kernel_shapes.MODELS)
    assert found.keys() == {
        *((1536, 1536), (8960, 1536), (1536, 8960)),
        *((3072, 3072), (12288, 3072), (3072, 12288)),
        *((5120, 5120), (13824, 5120), (5120, 13824)),
    }
    assert found[1536, 8960] == ["wan-1.3b down"]
