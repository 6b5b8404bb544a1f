"""What is read out of the tools of a Jetson, and that a tool which is not there is no trouble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vditc.device import facts

DATA = Path(__file__).parent / "data"
VERSION = {"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}


def text(name: str) -> str:
    return (DATA / name).read_text()


@pytest.mark.parametrize(("release", "wanted"), [("r36", "36.4.3"), ("r39", "39.2.0"), ("r38", "38.2.0")])
def test_releases_of_jetson_linux(release: str, wanted: str) -> None:
    assert facts.l4t(text(f"{release}_nv_tegra_release")) == wanted


@pytest.mark.parametrize(("release", "wanted"), [("r36", "MAXN_SUPER (2)"), ("r39", "MAXN (0)"), ("r38", "120W (1)")])
def test_power_modes(release: str, wanted: str) -> None:
    assert facts.power_mode(text(f"{release}_nvpmodel")) == wanted


def test_power_mode_behind_other_lines() -> None:
    assert facts.power_mode("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2\n") == "MODE_30W (2)"


@pytest.mark.parametrize(
    ("release", "name", "wanted"),
    [
        ("r36", "cpu0", (729.6, 1510.4, 960.0)),
        ("r36", "GPU", (306.0, 624.75, 306.0)),
        ("r36", "EMC", (204.0, 2133.0, 665.6)),
        ("r39", "cpu10", (2201.6, 2201.6, 2201.6)),
        ("r39", "GPU", (1300.5, 1300.5, 1300.5)),
        ("r39", "PVA0_AXI", (0.0, 985.6, 985.6)),
        ("r38", "gpu-gpc-0", (1575.0, 1575.0, 1575.0)),
        ("r38", "EMC", (665.6, 4266.0, 4266.0)),
    ],
)
def test_clocks(release: str, name: str, wanted: tuple[float, float, float]) -> None:
    found = facts.clocks(text(f"{release}_jetson_clocks"))
    assert found[name] == dict(zip(("min", "max", "now"), wanted, strict=True))
    assert "FAN" not in found and "Active" not in found


@pytest.mark.parametrize(("release", "wanted"), [("r36", "540.4.0"), ("r39", "580.173.02")])
def test_drivers(release: str, wanted: str) -> None:
    assert facts.driver(text(f"{release}_driver")) == wanted


@pytest.mark.parametrize(("said", "wanted"), [("6.2+b77", "6.2+b77"), ("7.2.1-b49\n", "7.2.1-b49")])
def test_packages_of_jetpack(said: str, wanted: str) -> None:
    assert facts.jetpack(said) == wanted


@pytest.mark.parametrize("read", [facts.l4t, facts.power_mode, facts.clocks, facts.driver, facts.jetpack, facts.cuda, facts.memory_bytes])
def test_other_texts_are_no_facts(read: Any) -> None:
    for said in ("", "Error: please run as root\n", "\x00\xff", "{}"):
        with pytest.raises((ValueError, KeyError)):
            read(said)


def jetson(root: Path) -> Path:
    """Files of a Jetson under another root."""
    for name, data in {
        "etc/nv_tegra_release": text("r36_nv_tegra_release"),
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/driver/nvidia/version": text("r36_driver"),
        "proc/meminfo": "MemTotal:        7665908 kB\nMemFree: 1 kB\n",
        "usr/local/cuda/version.json": json.dumps(VERSION),
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "960000\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/3d00000.half/min_freq": "1\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(data)
    return root


def test_all_of_a_board(tmp_path: Path) -> None:
    answers = {"nvpmodel": text("r36_nvpmodel"), "jetson_clocks": text("r36_jetson_clocks"), "dpkg-query": "6.2+b77"}
    found = facts.device_facts(jetson(tmp_path), lambda command: answers[command[0]])
    assert found | {"kernel": "", "python": "", "driver_cuda": "", "clocks": ""} == {
        "board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "l4t": "36.4.3",
        "jetpack": "6.2+b77",
        "power_mode": "MAXN_SUPER (2)",
        "clocks": "",
        "cuda": "12.6.11",
        "driver": "540.4.0",
        "driver_cuda": "",
        "memory_bytes": 7665908 * 1024,
        "kernel": "",
        "python": "",
    }
    assert found["clocks"]["source"] == "jetson_clocks --show" and found["clocks"]["GPU"]["max"] == 624.75


def test_clocks_for_who_is_not_root(tmp_path: Path) -> None:
    """jetson_clocks refuses; the kernel shows CPUs and the GPU to everybody. A folder that lacks a file is left out."""

    def refuses(command: list[str]) -> str:
        raise ValueError("jetson_clocks --show: Error: please run as root")

    found = facts.device_facts(jetson(tmp_path), refuses)["clocks"]
    assert found == {
        "source": "sysfs (unknown: jetson_clocks --show: Error: please run as root)",
        "cpu0": {"min": 729.6, "max": 1728.0, "now": 960.0},
        "17000000.gpu": {"min": 306.0, "max": 1020.0, "now": 306.0},
    }


def test_absent_tools_are_unknown_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = facts.device_facts(tmp_path)
    assert found["power_mode"] == "unknown: No such file or directory: nvpmodel"
    assert found["clocks"] == "unknown: No such file or directory: jetson_clocks"
    assert found["l4t"] == f"unknown: No such file or directory: {tmp_path / 'etc/nv_tegra_release'}"
    assert found["jetpack"] == "unknown: No such file or directory: dpkg-query"


def test_tools_that_fail_or_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in {
        "nvpmodel": "echo NVPM ERROR: no model >&2; exit 3",
        "dpkg-query": "exec sleep 9",
        "jetson_clocks": "echo odd",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(facts, "_SECONDS", 0.5)
    found = facts.device_facts(tmp_path)
    assert found["power_mode"] == "unknown: nvpmodel -q: NVPM ERROR: no model"
    assert found["jetpack"] == "unknown: dpkg-query said nothing in 0.5 s"
    assert found["clocks"] == "unknown: no clocks in 'odd'"


def test_what_runs_them_gives_them_no_input() -> None:
    assert facts._said(["cat"]) == ""
    with pytest.raises(ValueError, match="false: status 1"):
        facts._said(["false"])
