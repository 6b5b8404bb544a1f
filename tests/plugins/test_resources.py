"""What ptxas says of kernels is read: two kernels, one of which spills and calls a function that is none."""

from __future__ import annotations

import shutil

import pytest

from vditc.plugins.resources import Usage, usages

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5vditc5entryINS_5TwiceEEEvNT_9ArgumentsE' for 'sm_80'
ptxas info    : Function properties for _ZN5vditc5entryINS_5TwiceEEEvNT_9ArgumentsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compile time = 2.1 ms
ptxas info    : Compiling entry function 'deep' for 'sm_90a'
ptxas info    : Function properties for called
    64 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads
ptxas info    : Function properties for deep
    328 bytes stack frame, 2556 bytes spill stores, 140 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 328 bytes cumulative stack size, 1024 bytes smem, 376 bytes cmem[0]
"""


def test_report_is_read() -> None:
    if shutil.which("c++filt") is None:
        pytest.skip("needs binutils")
    first, second = usages(REPORT.splitlines())
    assert first == Usage("void vditc::entry<vditc::Twice>(vditc::Twice::Arguments)", "80", 10, 0, 0, 0, 0)
    assert second == Usage("deep", "90a", 128, 328, 2556, 140, 1024)


def test_a_report_that_lacks_a_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="no stack frame of deep for 90a"):
        usages([line for line in REPORT.splitlines() if "328 bytes stack frame" not in line])
