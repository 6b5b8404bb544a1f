"""Kernels through CUDA's driver (native/driver.cpp), as the library for CUDA 12 starts them: a driver that writes down what it is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vditc.plugins.build import SOURCES
from vditc.plugins.nvrtc_units import asked_for, program_of, table

KERNEL = """
#pragma once
#include "native/device.h"
namespace vditc {
template <int FACTOR>
struct Times {
  struct Arguments { const float* x; float* y; int64_t n; };
  static constexpr int THREADS = 128, BLOCKS_PER_SM = 1;
  static VDITC_DEVICE void run(const Arguments& a, unsigned char*) { a.y[threadIdx.x] = multiply(FACTOR, a.x[threadIdx.x]); }
};
}
"""
HOST = """
#include <vector>
#include "native/launch.h"
#include "op/times.h"
extern "C" VDITC_API vditc_status times(int factor, int64_t n, size_t shared, void* stream) {
  const auto* x = reinterpret_cast<const float*>(0x1000);
  auto* y = reinterpret_cast<float*>(0x2000);
  if (factor == 5) return vditc::launch<vditc::Times<2>>(dim3(1, 65535, static_cast<unsigned>(n)), shared, stream, {x, y, n});
  if (factor == 2) return vditc::launch<vditc::Times<2>>(dim3(5, 4, 3), shared, stream, {x, y, n});
  return vditc::launch<vditc::Times<3>>(dim3(1), 64, shared, stream, {x, y, n});
}
"""
DRIVER = """
#include <stdio.h>
#include <string.h>
char said[4096];
int sm = 87, attached = 1; unsigned long long context_id = 7;
static void say(const char* text) { strcat(said, text); strcat(said, ";"); }
int cuInit(unsigned f) { return 0; }
int cuCtxGetCurrent(void** c) { *c = attached ? (void*)1 : 0; return 0; }
int cuCtxSetCurrent(void* c) { say("set current"); attached = 1; return 0; }
int cuDevicePrimaryCtxRetain(void** c, int d) { *c = (void*)1; say("retain"); return 0; }
int cuCtxGetId(void* c, unsigned long long* id) { *id = context_id; return 0; }
int cuCtxGetDevice(int* d) { *d = 3; return 0; }
int cuDeviceGetAttribute(int* out, int what, int d) { *out = what == 75 ? sm / 10 : what == 76 ? sm % 10 : -1; return d != 3; }
int cuModuleLoadData(void** m, const void* image) {
  char t[99]; sprintf(t, "load %.10s", (const char*)image); say(t); *m = (void*)0x55; return 0; }
int cuModuleGetFunction(void** f, void* m, const char* name) {
  char t[199]; sprintf(t, "function %s", name); say(t); *f = (void*)0x66;
  return strstr(name, "gone") ? 500 : 0; }
int cuFuncSetAttribute(void* f, int what, int value) {
  char t[99]; sprintf(t, "attribute %d %d", what, value); say(t); return value > 99999; }
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* s,
                   void** p, void** e) {
  char t[199]; long long a[3]; memcpy(a, p[0], 24);
  sprintf(t, "launch %u %u %u, %u %u %u, %u, %p, %llx %llx %lld", gx, gy, gz, bx, by, bz, shared, s, a[0], a[1], a[2]); say(t); return 0; }
int cuThreadExchangeStreamCaptureMode(int* mode) { char t[99]; sprintf(t, "mode %d", *mode); say(t); *mode = 0; return 0; }
int cuGetErrorString(int e, const char** t) { *t = "too much"; return 0; }
"""
PROGRAM = """
import ctypes, json, sys
library, driver, calls = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
cuda = ctypes.CDLL(driver, ctypes.RTLD_GLOBAL) if driver else None
native = ctypes.CDLL(library)
native.vditc_last_error.restype = ctypes.c_char_p
out = []
for call in calls:
    for name, value in call.pop("driver", {}).items():
        (ctypes.c_ulonglong if name == "context_id" else ctypes.c_int).in_dll(cuda, name).value = value
    if cuda: ctypes.memset(ctypes.addressof((ctypes.c_char * 4096).in_dll(cuda, "said")), 0, 4096)
    given = (call.get("factor", 2), ctypes.c_int64(call.get("n", 77)), ctypes.c_size_t(call.get("shared", 0)), ctypes.c_void_p(0x99))
    status = native.times(*given) if not call.get("sm") else native.vditc_device_sm()
    said = (ctypes.c_char * 4096).in_dll(cuda, "said").value.decode().split(";")[:-1] if cuda else []
    out.append([status, native.vditc_last_error().decode(), said])
print(json.dumps(out))
"""
TWICE = "_ZN5vditc5entryINS_5TimesILi2EEEEEvNT_9ArgumentsE"


def compile_cpp(*arguments: object) -> None:
    run = subprocess.run(["g++", "-std=c++17", "-O1", "-fPIC", *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of host.o, library.so with a table of two kernels, of which the second has no code, and libcuda.so.1."""
    if not (shutil.which("g++") and shutil.which("nm")):
        pytest.skip("needs g++ and binutils")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "op").mkdir()
    (folder / "op" / "times.h").write_text(KERNEL)
    (folder / "op" / "host.cu").write_text(HOST)
    (folder / "fake.c").write_text(DRIVER)
    flags = ("-DVDITC_NVRTC", "-DVDITC_EMULATED", "-fvisibility=hidden", f"-I{SOURCES}", f"-I{folder}")
    compile_cpp(*flags, "-x", "c++", "-c", folder / "op" / "host.cu", "-o", folder / "host.o")
    kernels = asked_for("nm", folder / "host.o")
    twice, thrice = (next(name for name, kernel in kernels.items() if kernel == f"vditc::Times<{n}>") for n in (2, 3))
    images = []
    for sm in ("80", "87"):
        (folder / f"{sm}.cubin").write_bytes(f"code of {sm}".encode())
        images.append((4, sm, folder / f"{sm}.cubin"))
    (folder / "cubins.cpp").write_text(table({twice: (TWICE, 4), thrice: ("gone", 4)}, images))
    native = [SOURCES / "native" / f"{name}.cpp" for name in ("driver", "status", "sm")]
    compile_cpp(
        *flags, "-Wall", "-Werror", "-shared", folder / "host.o", folder / "cubins.cpp", *native, "-ldl", "-o", folder / "library.so"
    )
    compile_cpp("-shared", "-x", "c", "-std=c11", folder / "fake.c", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1")
    return folder


def run(made: Path, calls: list[dict[str, object]], driver: bool = True) -> list[tuple[int, str, list[str]]]:
    """Status, message and what the driver was told, of each call, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(made / "library.so"), str(made / "libcuda.so.1") if driver else "", json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [(status, message, said) for status, message, said in json.loads(done.stdout)]


def test_a_kernel_is_loaded_once_for_each_context(made: Path) -> None:
    first, second, other = run(made, [{}, {}, {"driver": {"context_id": 8}}])
    launch = "launch 5 4 3, 128 1 1, 0, 0x99, 1000 2000 77"
    load = ["load code of 87", f"function {TWICE}"]
    assert first[0] == second[0] == other[0] == 0
    assert first[2] == other[2] == ["mode 2", *load, launch, "mode 0"] and second[2] == ["mode 2", launch, "mode 0"]


def test_the_first_launch_may_be_captured(made: Path) -> None:
    """All that a driver may refuse while a graph is captured is done in the relaxed mode, which is undone whatever comes of it."""
    calls: list[dict[str, object]] = [{"shared": 65536}, {"shared": 100000}, {"factor": 3}, {"driver": {"sm": 90}}]
    for said in (run(made, [call])[0][2] for call in calls):
        assert (said[0], said[-1]) == ("mode 2", "mode 0") and "mode" not in "".join(said[1:-1])
    assert run(made, [{"shared": 65536}])[0][2][1:-1] == [
        "load code of 87", f"function {TWICE}", "attribute 8 65536", "launch 5 4 3, 128 1 1, 65536, 0x99, 1000 2000 77",
    ]  # fmt: skip


def test_a_grid_that_there_is_not(made: Path) -> None:
    most, many = run(made, [{"factor": 5, "n": 65535}, {"factor": 5, "n": 65536}])
    assert most[0] == 0 and most[2][-2].startswith("launch 1 65535 65535, ")
    assert many == (1, "launch of a kernel: a grid of 1 x 65535 x 65536 blocks; wanted at most 2147483647 x 65535 x 65535", [])


@pytest.mark.parametrize(("sm", "image"), [(87, "87"), (80, "80"), (86, "80"), (89, "87")])
def test_code_of_the_generation_that_is_not_newer(made: Path, sm: int, image: str) -> None:
    (status, _, said), (found, _, _) = run(made, [{"driver": {"sm": sm}}, {"sm": True}])
    assert status == 0 and said[1] == f"load code of {image}" and found == sm


@pytest.mark.parametrize("sm", [75, 90, 110])
def test_other_generations_are_refused(made: Path, sm: int) -> None:
    status, message, said = run(made, [{"driver": {"sm": sm}}])[0]
    assert status == 2 and f"no code for this GPU (sm_{sm})" in message and said == ["mode 2", "mode 0"]


def test_shared_memory_threads_and_stream(made: Path) -> None:
    small, large, much = run(made, [{"shared": 48 << 10}, {"shared": 65536}, {"shared": 100000}])
    assert small[2][-2] == "launch 5 4 3, 128 1 1, 49152, 0x99, 1000 2000 77"
    assert large[2] == ["mode 2", "attribute 8 65536", "launch 5 4 3, 128 1 1, 65536, 0x99, 1000 2000 77", "mode 0"]
    assert much[0] == 4 and much[1] == "shared memory of a kernel: too much (1)" and len(much[2]) == 3


def test_a_thread_without_context_gets_the_first_device(made: Path) -> None:
    assert run(made, [{"driver": {"attached": 0}}])[0][2][:2] == ["retain", "set current"]


def test_what_is_missing_is_said(made: Path) -> None:
    status, message, _ = run(made, [{"factor": 3}])[0]
    assert status == 2 and message == "the library has no kernel gone"
    status, message, _ = run(made, [{}], driver=False)[0]
    if "libcuda" not in message:
        pytest.skip("this machine has a driver")
    assert status == 4 and "found no libcuda.so.1" in message
    assert run(made, [{"sm": True}], driver=False)[0][0] == -1


def test_kernels_that_an_object_asks_for(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(asked_for("nm", made / "host.o").values()) == ["vditc::Times<2>", "vditc::Times<3>"]
    assert program_of(made / "op" / "host.cu") == '#include "native/launch.h"\n#include "op/times.h"\n'
    hidden = HOST.replace('extern "C"', 'namespace { struct Mine : vditc::Times<5> {}; }\nextern "C"').replace("vditc::Times<2>>", "Mine>")
    (tmp_path / "hidden.cu").write_text(hidden)
    flags = ("-DVDITC_NVRTC", "-DVDITC_EMULATED", f"-I{SOURCES}", f"-I{made}")
    compile_cpp(*flags, "-x", "c++", "-c", tmp_path / "hidden.cu", "-o", tmp_path / "hidden.o")
    with pytest.raises(SystemExit, match=r"found the kernel .anonymous namespace.::Mine; wanted a name that NVRTC can say"):
        asked_for("nm", tmp_path / "hidden.o")
