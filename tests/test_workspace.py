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


def test_resume_repeats_a_stage_of_another_key(tmp_path: Path) -> None:
    """What a stage depends on beside the job: a resumed job may say it otherwise."""
    made: list[str] = []
    for key in (["level=3"], ["level=3"], ["level=5"], None, None):
        space = start(tmp_path / "out", resume=True)
        space.stage("build", lambda key=key: made.append(str(key)), (), key=key)  # type: ignore[misc]
    assert made == ["['level=3']", "['level=5']", "None"]


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
    Workspace.start(tmp_path / "out", "first", {"steps": "4", "model": "a", "gone": "1"}, resume=False, force=True)
    with pytest.raises(InputError, match="of another job; gone: began with 1, now none; steps: began with 4, now 6; wanted"):
        Workspace.start(tmp_path / "out", "second", {"steps": "6", "model": "a"}, resume=True, force=False)


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


def test_a_bundle_in_the_bundle_has_stages_of_its_own(tmp_path: Path) -> None:
    calls: list[str] = []
    space = start(tmp_path / "out")
    run_stage(space, calls)
    inner = space.within("second")
    assert inner.path == space.path / "second" and inner.scratch.parent == space.scratch
    inner.path.mkdir()
    assert run_stage(inner, calls) == {"calls": 2}  # not what the stage of that name gave outside
    again = start(tmp_path / "out", resume=True)
    assert run_stage(again, calls) == {"calls": 1} and run_stage(again.within("second"), calls) == {"calls": 2} and len(calls) == 2
    assert list(again.within("second").written_by("one")) == ["one.bin"]
    (inner.path / "one.bin").write_bytes(b"damaged")
    run_stage(again, calls)
    assert len(calls) == 2
    run_stage(again.within("second"), calls)
    assert len(calls) == 3
    again.within("second").finish()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.bin")) == ["out/one.bin", "out/second/one.bin"]
    assert not list((tmp_path / "out").glob(".*"))
