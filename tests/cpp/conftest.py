"""Fixtures of tests that run engines on the stand-ins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cpp_engines import Device


@pytest.fixture
def device() -> Iterator[Device]:
    """Whatever a test does: everything is given back, and nothing was done that a driver or TensorRT takes amiss."""
    made = Device()
    yield made
    made.reset()
    assert (made["live"], made["contexts"], made["faults"]) == (0, 0, 0)
