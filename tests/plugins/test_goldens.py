"""Golden files: made of the oracles, small, and met by every tactic of the emulated library; a wrong number is found."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_cases import FOLDER, Case, cases

from vditc.errors import InputError
from vditc.plugins.device_memory import Array, DeviceMemory
from vditc.plugins.emulated import emulated_library
from vditc.plugins.golden_file import Golden, goldens_in, read_golden
from vditc.plugins.goldens import Outcome, check_golden, main
from vditc.plugins.library import KernelError, Library

GOLDENS = goldens_in(FOLDER)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(emulated_library())


def of(name: str) -> Golden:
    return next(g for g in GOLDENS if g.name == name)


def test_the_files_are_what_the_oracles_say(tmp_path: Path) -> None:
    made = {case.name: case for case in cases()}
    assert {g.name for g in GOLDENS} == made.keys()
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 1.5e6
    for golden in GOLDENS:
        case: Case = made[golden.name]
        case.write(tmp_path)
        again = read_golden(tmp_path / f"{golden.name}.safetensors")
        assert json.loads(json.dumps(again.facts)) == golden.facts, golden.name
        assert again.tensors.keys() == golden.tensors.keys()
        for name, array in again.tensors.items():
            if array.dtype == np.int8 or name in ("scale", "total") or golden.operator == "qlinear":
                np.testing.assert_array_equal(golden.tensors[name], array, f"{golden.name} {name}")
            else:  # float64 products, whose last bit is that of a machine's BLAS
                np.testing.assert_allclose(golden.wide(name), again.wide(name), rtol=1e-2, err_msg=f"{golden.name} {name}")


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda g: g.name)
def test_every_tactic_gives_what_numpy_gave(library: Library, golden: Golden) -> None:
    outcomes = check_golden(library, golden)
    assert [str(o) for o in outcomes if o.wrong] == []
    ran = {o.tactic for o in outcomes if o.skipped is None}
    assert ran >= ({"any", "unpack-128", "unpack-64"} if golden.operator == "qlinear" else {"kernel"})


def test_all_tactics_of_the_emulated_library_ran(library: Library) -> None:
    goldens = [of("qlinear_w4a4_packed_fp16"), of("qlinear_w8a8_gated_fp16")]
    ran = {o.tactic for g in goldens for o in check_golden(library, g) if o.skipped is None}
    assert ran == {"any", "unpack-128", "unpack-64", "int4", "carrier"}  # all but CUTLASS's


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("qlinear_w8a8_bias_fp16", "weight", "; the file says"),
        ("qlinear_w8a8_bias_fp16", "y", "y: 1 of 6720 are wrong, the first at [0, 0]"),
        ("qlinear_w4a8_gelu_fp32", "y", "y: 1 of 320 are wrong"),
        ("quantize_token_a8_fp16", "codes", "codes: 1 of 4800 are wrong"),
        ("quantize_token_a8_fp16", "scale", "scale: 1 of 24 are wrong"),
        ("quantize_token_a8_gelu_fp16", "x", "codes"),
        ("quantize_token_a8_given_balance_shares_fp16", "alpha", "share0"),
        ("quantize_token_a8_gated_layer_fp16", "sum", "sum: 1 of"),
        ("qattention_d64_fp16", "y", "y: 1 of 8960 are wrong"),
        ("qattention_d64_fp16", "q", "products of codes"),
    ],
)
def test_one_wrong_number_is_found(library: Library, name: str, tensor: str, said: str) -> None:
    """One bit of a tensor of the file turned."""
    golden = of(name)
    turned = np.array(golden.tensors[tensor])
    bits = turned.reshape(-1).view(np.uint8)
    # The highest bit of the exponent, or of a code; of alpha the sum is compared with what the library made of the true one.
    bits[turned.itemsize - 1] ^= 0x40
    wrong = dataclasses.replace(golden, tensors={**golden.tensors, tensor: turned})
    found = check_with_other_alpha(library, golden, turned) if tensor == "alpha" else check_golden(library, wrong)
    assert any(o.wrong and said in o.wrong for o in found), found


def check_with_other_alpha(library: Library, golden: Golden, alpha: Array) -> list[Outcome]:
    """The kernel reads `alpha`, the comparison the file's."""
    put = DeviceMemory.put

    def other(self: DeviceMemory, array: Array) -> int:
        return put(self, alpha if array is golden.tensors["alpha"] else array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceMemory, "put", other)
        return check_golden(library, golden)


def test_codes_may_be_off_by_one_in_few_places_only(library: Library) -> None:
    exact = of("quantize_token_a8_fp16")
    golden = dataclasses.replace(exact, facts={**exact.facts, "codes_off": 1e-3})
    for count, right in ((4, True), (5, False)):  # 0.1 % of 24 x 200 is 4.8
        codes = np.array(golden.tensors["codes"])
        codes.reshape(-1)[:count] += 1
        found = check_golden(library, dataclasses.replace(golden, tensors={**golden.tensors, "codes": codes}))
        assert (found[0].wrong is None) == right, found
    assert "5 of 4800 are off by 1; wanted at most 4" in str(found[0])
    codes.reshape(-1)[:5] -= 1
    codes.reshape(-1)[:1] -= 2
    found = check_golden(library, dataclasses.replace(golden, tensors={**golden.tensors, "codes": codes}))
    assert "codes (by more than 1): 1 of 4800" in str(found[0])


def test_a_problem_that_the_library_refuses_is_wrong(library: Library) -> None:
    golden = of("qlinear_w4a4_packed_fp16")
    found = check_golden(library, dataclasses.replace(golden, problem={**golden.problem, "layout": 7}))
    assert found == [Outcome(golden.name, "-", wrong=found[0].wrong)] and "layout = 7" in str(found[0])


def test_what_was_written_behind_an_output_is_found(library: Library) -> None:
    with DeviceMemory(library) as memory:
        address = memory.empty(64)
        zero = ctypes.c_void_p(memory.put(np.zeros(1, np.uint8)))
        library.call("vditc_device_copy", ctypes.c_void_p(address + 64), zero, ctypes.c_size_t(1))
        with pytest.raises(KernelError, match="byte 0 behind the end of 64 bytes was written"):
            memory.check()


def test_the_command_needs_numpy_alone(tmp_path: Path) -> None:
    """Any other package than numpy is refused in the process that it runs in."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        if top not in sys.stdlib_module_names and top not in ('numpy', 'vditc'): raise ImportError(f'{name} is refused')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from vditc.plugins.goldens import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, str(script), "--library", str(emulated_library()), "--goldens", str(FOLDER), "--only", "qlinear_w8a8_gated"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1] == "sm_80: 4 right, 0 wrong, 4 not run"


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = str(emulated_library())
    assert main(["--library", str(tmp_path / "none.so")]) == 2
    assert main(["--library", library, "--goldens", str(tmp_path)]) == 2
    assert main(["--library", library, "--goldens", str(FOLDER), "--only", "none"]) == 2
    said = capsys.readouterr().err
    assert "build it" in said and "found no golden file" in said and "no name that begins with none" in said
    spoilt = of("qlinear_w8a8_gated_fp16")
    path = FOLDER / f"{spoilt.name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of x, the last tensor: int8
    (tmp_path / path.name).write_bytes(data)
    assert main(["--library", library, "--goldens", str(tmp_path), "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["sm"] for row in rows} == {80} and any(row["wrong"] for row in rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[:100], "JSONDecodeError"),
        (lambda d: d.replace(b'\\"version\\": 1', b'\\"version\\": 2'), "version 2"),
        (lambda d: b"", "JSONDecodeError"),
    ],
)
def test_files_that_are_no_goldens(tmp_path: Path, change: object, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(change((FOLDER / "qlinear_w4a8_gelu_fp32.safetensors").read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        read_golden(path)
