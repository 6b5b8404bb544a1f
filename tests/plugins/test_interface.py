"""The structs that Python hands to the library are those of the header, which is C, and the C example computes what its comment says."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vditc.plugins import interface
from vditc.plugins.emulated import SOURCES, emulated_library
from vditc.plugins.library import ABI_VERSION, KernelError, Library, Rows

HEADER = SOURCES / "native" / "vditc_plugins.h"
EXAMPLE = SOURCES / "example" / "one_layer.c"
GCC = ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
STRUCTS = {
    "vditc_rows": Rows,
    "vditc_qlinear_problem": interface.QLinearProblem,
    "vditc_qlinear_tensors": interface.QLinearTensors,
    "vditc_quantize_token_problem": interface.QuantizeTokenProblem,
    "vditc_quantize_token_tensors": interface.QuantizeTokenTensors,
    "vditc_qattention_problem": interface.QAttentionProblem,
    "vditc_qattention_tensors": interface.QAttentionTensors,
    "vditc_qattention_keys": interface.QAttentionKeys,
}
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def run_c(text: str, folder: Path) -> str:
    source = folder / "program.c"
    source.write_text(text)
    subprocess.run([*GCC, str(source), "-o", str(folder / "program")], check=True)
    return subprocess.run([folder / "program"], check=True, capture_output=True, text=True).stdout


def test_structs_are_those_of_the_header(tmp_path: Path) -> None:
    declared = set(re.findall(r"^\} (vditc_\w+);", HEADER.read_text(), re.MULTILINE))
    enums = set(re.findall(r"^typedef enum \{.*?\} (vditc_\w+);", HEADER.read_text(), re.MULTILINE | re.DOTALL))
    assert declared - enums == STRUCTS.keys()
    lines = []
    for name, structure in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        fields = [field[0] for field in structure._fields_]
        lines += [f'printf("{name}.{f} %zu %zu\\n", offsetof({name}, {f}), sizeof((({name}*)0)->{f}));' for f in fields]
    found = run_c(f'#include <stdio.h>\n#include "native/vditc_plugins.h"\nint main(void) {{ {" ".join(lines)} return 0; }}\n', tmp_path)
    ours = []
    for name, structure in STRUCTS.items():
        ours.append(f"{name} {ctypes.sizeof(structure)}")
        at = [getattr(structure, field[0]) for field in structure._fields_]
        ours += [f"{name}.{field[0]} {a.offset} {a.size}" for field, a in zip(structure._fields_, at, strict=True)]
    assert found.splitlines() == ours


def test_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    names = [*(f"VDITC_{n.upper()}" for n in interface.FLOATS), "VDITC_NO_ACTIVATION", "VDITC_GELU", "VDITC_GELU_TANH", "VDITC_NO_NORM"]
    names += ["VDITC_LAYER_NORM", "VDITC_RMS_NORM", "VDITC_ANY_TACTIC", "VDITC_ABI_VERSION", "VDITC_NO_KERNEL"]
    text = " ".join(f'printf("%d\\n", (int){name});' for name in names)
    found = [
        int(n)
        for n in run_c(f'#include <stdio.h>\n#include "native/vditc_plugins.h"\nint main(void) {{ {text} return 0; }}\n', tmp_path).split()
    ]
    tables = (interface.FLOATS, interface.ACTIVATIONS, interface.NORMS)
    assert found == [*(n for table in tables for n in table.values()), interface.ANY_TACTIC, ABI_VERSION, 2]


def test_the_example_in_c(tmp_path: Path) -> None:
    """Compiled as C99, linked with the library, run: the number that its own check finds is printed."""
    library = emulated_library()
    program = tmp_path / "example"
    subprocess.run([*GCC, str(EXAMPLE), str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)], check=True)
    ran = subprocess.run([program], capture_output=True, text=True, env={**os.environ, "VDITC_EMULATED_SM": "80"})
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.startswith("64 x 96 outputs are right; tactics of sm_80:")


def test_a_struct_of_unknown_fields() -> None:
    with pytest.raises(ValueError, match="QLinearProblem has no field rows"):
        interface.filled(interface.QLinearProblem, {"rows": 1})


def test_device_memory_says_what_is_wrong() -> None:
    library = Library(emulated_library())
    with pytest.raises(KernelError, match="memory is null") as caught:
        library.call("vditc_device_allocate", ctypes.c_size_t(1), None)
    assert caught.value.status == 1
    with pytest.raises(KernelError, match="no memory for"):
        library.call("vditc_device_allocate", ctypes.c_size_t(2**64 - 8), ctypes.byref(ctypes.c_void_p()))
    with pytest.raises(KernelError, match="to is null; wanted memory of 4 bytes"):
        library.call("vditc_device_copy", None, ctypes.c_void_p(1), ctypes.c_size_t(4))
