from __future__ import annotations

from pathlib import Path

import pytest

from vditc import build_memory
from vditc.build_memory import SURE, available_memory, check_build_memory
from vditc.errors import VditcError
from vditc.progress import SILENT

GB = 1_000_000_000


class Notes(type(SILENT)):  # type: ignore[misc]
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_enough_close_and_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_memory, "available_memory", lambda: 10 * GB)
    notes = Notes()
    check_build_memory(10 * GB, None, "here", notes)
    assert notes.said == []
    check_build_memory(11 * GB, None, "here", notes)
    assert notes.said[0].startswith(
        "here: the builder needs about 11.00 GB, 10.00 GB are free; if it is killed, cut the engine (--segments auto), choose a recipe of "
        "fewer bits"
    )
    most = int(10 * GB / SURE)
    check_build_memory(most, None, "here", notes)
    with pytest.raises(
        VditcError, match=r"here: found 10\.00 GB of memory free; wanted about 11\.77 GB, .*fewer bits.*--engine memory=11GiB"
    ):
        check_build_memory(most + GB // 100, None, "here", notes)
    check_build_memory(40 * GB, 40 * GB, "here", notes)  # whoever says so knows better
    with pytest.raises(VditcError, match=r"found 4\.00 GB of memory allowed"):
        check_build_memory(9 * GB, 4 * GB, "here", notes)


def machine(tmp_path: Path, groups: str, **limits: dict[str, str]) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup. `limits`: folder, with _ for /, -> files."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16000 kB\nMemAvailable:   8000 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    for folder, files in limits.items():
        (at := root.joinpath(*folder.split("_")) if folder != "root" else root).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (at / name.replace("__", ".")).write_text(text)
    return proc, root


V2 = {"memory.current": "3000000\n", "memory.stat": "anon 5\ninactive_file 1000000\n"}


@pytest.mark.parametrize(
    ("groups", "limits", "wanted"),
    [
        ("0::/\n", {}, 8_192_000),
        ("0::/job/step\n", {"job_step": V2 | {"memory.max": "max\n"}, "job": V2 | {"memory.max": "5000000\n"}}, 3_000_000),
        ("0::/gone\n", {"root": V2 | {"memory.max": "2500000\n"}}, 500_000),
        ("0::/job\n", {"job": V2 | {"memory.max": "1000000\n"}}, 0),
        ("0::/job\n", {"job": V2 | {"memory.max": "90000000\n"}}, 8_192_000),
        (
            "4:memory,hugetlb:/box\n0::/\n",
            {"memory_box": {"memory.limit_in_bytes": "4000000", "memory.usage_in_bytes": "1000", "memory.stat": "total_inactive_file 0\n"}},
            3_999_000,
        ),
    ],
)
def test_free_is_what_every_group_leaves(groups: str, limits: dict[str, dict[str, str]], wanted: int, tmp_path: Path) -> None:
    assert available_memory(*machine(tmp_path, groups, **limits)) == wanted


def test_a_machine_that_does_not_say(tmp_path: Path) -> None:
    with pytest.raises(VditcError, match=r"found no MemAvailable; .*--engine memory=SIZE"):
        available_memory(tmp_path)
    assert available_memory() > 0
