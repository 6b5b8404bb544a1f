from __future__ import annotations

from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.workspace import NOTES, Workspace


def start(out: Path, job: str = "job", *, resume: bool = False, force: bool = False) -> Workspace:
    return Workspace.start(out, job, resume=resume, force=force)


def run_stage(space: Workspace, calls: list[str], name: str = "one") -> object:
    def work() -> dict[str, int]:
        calls.append(name)
        (space.path / f"{name}.bin").write_bytes(name.encode())
        return {"calls": len(calls)}

    return space.stage(name, work, (f"{name}.*",))


def test_finished_bundle_holds_only_outputs(tmp_path: Path) -> None:
    space = start(tmp_path / "out")
    (space.scratch / "temporary").write_text("x")
    run_stage(space, [])
    space.finish()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one.bin"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_resume_skips_finished_stages_and_returns_their_facts(tmp_path: Path) -> None:
    calls: list[str] = []
    assert run_stage(start(tmp_path / "out"), calls) == {"calls": 1}
    again = start(tmp_path / "out", resume=True)
    assert run_stage(again, calls) == {"calls": 1}
    run_stage(again, calls, "two")
    assert calls == ["one", "two"]


def test_resume_repeats_a_stage_whose_file_changed(tmp_path: Path) -> None:
    calls: list[str] = []
    space = start(tmp_path / "out")
    run_stage(space, calls)
    (space.path / "one.bin").write_bytes(b"damaged")
    run_stage(start(tmp_path / "out", resume=True), calls)
    assert calls == ["one", "one"]
    assert (space.path / "one.bin").read_bytes() == b"one"


def test_existing_output_is_refused_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(InputError, match="exists"):
        start(out)
    space = start(out, force=True)
    run_stage(space, [])
    assert (out / "old").exists()  # until the new bundle is whole
    space.finish()
    assert sorted(p.name for p in out.iterdir()) == ["one.bin"]


def test_interrupted_run_is_not_thrown_away_silently(tmp_path: Path) -> None:
    run_stage(start(tmp_path / "out"), [])
    with pytest.raises(InputError, match="left by an interrupted run"):
        start(tmp_path / "out")
    calls: list[str] = []
    run_stage(start(tmp_path / "out", force=True), calls)
    assert calls == ["one"]


def test_resume_of_another_job_is_refused(tmp_path: Path) -> None:
    start(tmp_path / "out", "first")
    with pytest.raises(InputError, match="of another job"):
        start(tmp_path / "out", "second", resume=True)


def test_resume_after_a_kill_before_the_first_note(tmp_path: Path) -> None:
    space = start(tmp_path / "out")
    (space.path / NOTES).unlink()
    calls: list[str] = []
    run_stage(start(tmp_path / "out", resume=True), calls)
    assert calls == ["one"]


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    space = start(tmp_path / "out")
    space.discard()
    assert list(tmp_path.iterdir()) == []
