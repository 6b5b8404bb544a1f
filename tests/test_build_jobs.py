from __future__ import annotations

from pathlib import Path

import pytest

from vditc.build_jobs import FILE, BuildJob, JobList
from vditc.errors import InputError

BUNDLE = {"transformer/model.onnx": "a" * 64}


def job(target: str, key: str = "1") -> BuildJob:
    return BuildJob(part="transformer", target=target, said=target, key=key)


def test_a_list_goes_on(tmp_path: Path) -> None:
    jobs = JobList.read(tmp_path, BUNDLE)
    done, failed, running, other = jobs.add(job(t) for t in ("l4", "h100", "a100", "b200"))
    jobs.mark(done, "done", status="built", seconds=2.5)
    jobs.mark(failed, "failed", reason="no kernel")
    jobs.mark(running, "running", where="here")
    jobs.mark(other, "done")
    again = JobList.read(tmp_path, BUNDLE)
    found = again.add([job("l4"), job("h100"), job("a100"), job("b200", key="2"), job("l40s")])
    assert [(j.target, j.state, j.anew) for j in found] == [
        ("l4", "done", False),
        ("h100", "failed", False),
        ("a100", "pending", False),
        ("b200", "pending", True),  # built from something else now
        ("l40s", "pending", False),
    ]
    assert found[0].seconds == 2.5 and found[1].reason == "no kernel"
    (retried,) = again.add([job("h100")], retry_failed=True)
    assert (retried.state, retried.reason) == ("pending", "")
    assert [j.target for j in JobList.read(tmp_path, BUNDLE).jobs] == ["l4", "h100", "a100", "b200", "l40s"]


def test_a_list_of_another_bundle(tmp_path: Path) -> None:
    JobList.read(tmp_path, BUNDLE).add([job("l4")])
    with pytest.raises(InputError, match=r"changed since .* \(transformer/model.onnx: a{12} then, b{12} now\).*--force"):
        JobList.read(tmp_path, {"transformer/model.onnx": "b" * 64})
    with pytest.raises(InputError, match=r"transformer_2/model.onnx: none then, c{12} now"):
        JobList.read(tmp_path, {**BUNDLE, "transformer_2/model.onnx": "c" * 64})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 2, "bundle": {}, "jobs": []}', '{"schema": 1, "bundle": {}, "jobs": [{}]}'])
def test_a_damaged_list(tmp_path: Path, text: str) -> None:
    JobList.read(tmp_path, BUNDLE).add([job("l4")])
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=r"no list of jobs .*jobs.json|jobs.json.*no list of jobs"):
        JobList.read(tmp_path, BUNDLE)
