"""What libvditc says of bundles and of safetensors files is what Python says, and what Python refuses it refuses, in the same words."""

from __future__ import annotations

import ctypes
import json
import math
import struct
from collections.abc import Callable
from ctypes import byref, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from command import vditc
from cpp_bundle import LATENTS, PROFILE, SPECS, STEPS, save_bundle, save_experts
from cpp_library import DTYPES, BundleInfo, FileInfo, InputInfo, Library, LibraryError, TargetInfo, Tensor, array_of, tensor

from vditc.bundle import MANIFEST, Bundle
from vditc.errors import InputError
from vditc.safetensors_file import read_header, write_tensors


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "b")


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((root / MANIFEST).read_text())
    change(data)
    (root / MANIFEST).write_text(json.dumps(data))


def test_it_says_what_inspect_says(library: Library, root: Path) -> None:
    manifest = Bundle.open(root).manifest
    with library.bundle(root, hashes=1) as bundle:
        assert library.text("bundle_manifest", bundle) == vditc("inspect", str(root), "--json").stdout
        info = library.info("bundle_info_get", BundleInfo, bundle)
        assert (info.schema, info.steps, info.files, info.targets, info.experts) == (1, STEPS, 3, 1, 0)
        assert info.bytes == sum(e.bytes for e in manifest.files.values())
        assert (info.mean_bits, info.guidance_scale, tuple(info.latent_shape)) == (8.125, 3.0, LATENTS)
        assert (info.made_by, info.model_class, info.recipe) == (b"0.1.0", b"WanTransformer3DModel", b"w8a8")
        files = [library.info("bundle_file", FileInfo, bundle, c_uint64(i)) for i in range(info.files)]
        assert {f.name.decode(): (f.bytes, f.sha256.decode()) for f in files} == {
            name: (e.bytes, e.sha256) for name, e in manifest.files.items()
        }
        target = library.info("bundle_target", TargetInfo, bundle, c_uint64(0))
        assert (target.name, target.backend, target.status, target.arch) == (b"rtx-ada", b"tensorrt_rtx", b"built", b"sm_89,sm_120")
        assert (target.version, target.library, target.plan_bytes) == (b"1.7.1.116", b"", 4)
        for i, spec in enumerate(SPECS):
            said = library.info("bundle_input", InputInfo, bundle, c_uint64(i))
            assert said.name.decode() == spec.name and said.dtype == DTYPES[np.dtype(spec.dtype)] and said.rank == len(spec.dims)
            axes = [said.dims[k] or said.axes[k].decode() for k in range(said.rank)]
            assert axes == list(spec.dims)
            assert said.fill == (spec.fill.encode() if isinstance(spec.fill, str) else b"")
            ends = [(said.smallest[k], said.greatest[k]) for k in range(said.rank)]
            assert ends == [(d, d) if isinstance(d, int) else (PROFILE[d][0], PROFILE[d][2]) for d in spec.dims]
        for name, kind in (("bundle_file", FileInfo), ("bundle_target", TargetInfo), ("bundle_input", InputInfo)):
            with pytest.raises(LibraryError, match=r"NOT_FOUND: bundle: found \w+ 9; wanted fewer than"):
                library.info(name, kind, bundle, c_uint64(9))
        with pytest.raises(LibraryError, match=r"SHORT_BUFFER: buffer: found 5 bytes; wanted \d+ bytes"):
            library("bundle_manifest", bundle, ctypes.create_string_buffer(5), c_size_t(5), None)


def list_also(root: Path, name: str) -> None:
    """In the manifest."""
    edit(root, lambda data: data["files"].update({name: data["files"]["model.onnx"]}))


def as_folder(root: Path) -> None:
    (root / "model.onnx").unlink()
    (root / "model.onnx").mkdir()


def link_out(root: Path) -> None:
    (root / "link").symlink_to(root.parent)
    list_also(root, "link/secret")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed byte": (lambda root: (root / "model.onnx").write_bytes(b"portable grapH"), "DAMAGED"),
    "a cut file": (lambda root: (root / "model.onnx").write_bytes(b"port"), "DAMAGED"),
    "a lost file": (lambda root: (root / "model.onnx").unlink(), "DAMAGED"),
    "a folder for a file": (as_folder, "DAMAGED"),
    "a newer schema": (lambda root: edit(root, lambda d: d.update(schema=2)), "SCHEMA"),
    "no schema": (lambda root: edit(root, lambda d: d.pop("schema")), "SCHEMA"),
    "a list": (lambda root: (root / MANIFEST).write_text("[]"), "SCHEMA"),
    "a lost key": (lambda root: edit(root, lambda d: d.pop("layers")), "DAMAGED"),
    "an unknown key": (lambda root: edit(root, lambda d: d.update(surprise=1)), "DAMAGED"),
    "a file of no size": (lambda root: edit(root, lambda d: d.update(files={"model.onnx": {}})), "DAMAGED"),
    "half a manifest": (lambda root: (root / MANIFEST).write_text((root / MANIFEST).read_text()[:500]), "DAMAGED"),
    "bytes": (lambda root: (root / MANIFEST).write_bytes(bytes(range(200))), "DAMAGED"),
    "deep nesting": (lambda root: (root / MANIFEST).write_text("[" * 100_000), "DAMAGED"),
    "no manifest": (lambda root: (root / MANIFEST).unlink(), "NOT_FOUND"),
    "a path up": (lambda root: list_also(root, "../secret"), "PATH"),
    "a path down and up": (lambda root: list_also(root, "lowered/../../secret"), "PATH"),
    "an absolute path": (lambda root: list_also(root, "/etc/hostname"), "PATH"),
    "a link out": (link_out, "PATH"),
    "a zero byte": (lambda root: list_also(root, "model.onnx\0x"), "PATH"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_python_refuses_is_refused(library: Library, root: Path, what: str) -> None:
    change, status = REFUSED[what]
    (root.parent / "secret").write_bytes(b"portable graph")
    change(root)
    with pytest.raises(LibraryError) as caught, library.bundle(root, hashes=1):
        pass
    assert caught.value.status == f"VDITC_ERROR_{status}"
    assert ("use vditc 0.1.0, which wrote it" in caught.value.message) == (what in ("a newer schema", "no schema"))
    try:
        Bundle.open(root)
    except (InputError, RecursionError, UnicodeDecodeError, ValueError) as error:
        words = error.found.split(" (")[0] if isinstance(error, InputError) else ""
        assert status == "SCHEMA" or words in caught.value.message  # null and None are one
    else:
        raise AssertionError("Python opens it")


def test_manifests_of_every_number(library: Library, root: Path) -> None:
    """Python writes Infinity and NaN, and repeats of a name count once."""
    text = (root / MANIFEST).read_text()
    assert "Infinity" in text
    (root / MANIFEST).write_text(text.replace('"gate": {}', '"gate": {"a": NaN, "b": -Infinity, "c": "NaN \\" Infinity"}'))
    with library.bundle(root) as bundle:
        assert "-Infinity" in library.text("bundle_manifest", bundle)
    (root / MANIFEST).write_text(text.replace('"mean_bits": 8.125', '"mean_bits": 3, "mean_bits": 5.5'))
    with library.bundle(root) as bundle:
        assert library.info("bundle_info_get", BundleInfo, bundle).mean_bits == 5.5


def test_hashes_come_later(library: Library, root: Path) -> None:
    (root / "model.onnx").write_bytes(b"portable grapH")
    with (
        library.bundle(root) as bundle,
        pytest.raises(LibraryError, match=r"DAMAGED: bundle .*model\.onnx with sha256 \w{16}…; wanted \w{16}…"),
    ):
        library("bundle_verify", bundle, None)


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_of_hashing(library: Library, root: Path, threads: int) -> None:
    from cpp_library import PROGRESS, BundleOptions

    told: list[tuple[int, int]] = []
    said = library.options(BundleOptions, "bundle_options", threads=threads)

    def note(_: Any, progress: Any) -> int:
        told.append((progress[0].done, progress[0].total))
        return 0

    said.progress = PROGRESS(note)
    with library.bundle(root) as bundle:
        library("bundle_verify", bundle, byref(said))
        total = library.info("bundle_info_get", BundleInfo, bundle).bytes
        assert told[-1] == (total, total) and all(0 < done <= total for done, _ in told)
        told.clear()
        library("bundle_verify", bundle, byref(said))  # all are known
        assert told == [(0, 0)]
    said.progress = PROGRESS(lambda *_: 1)
    with library.bundle(root) as bundle:
        with pytest.raises(LibraryError, match=r"VDITC_CANCELLED: .*a callback that asks to stop"):
            library("bundle_verify", bundle, byref(said))
        library("bundle_verify", bundle, None)  # what was left out is hashed now
    with pytest.raises(LibraryError, match=r"ARGUMENT: .*-1 threads"), library.bundle(root, hashes=1, threads=-1):
        pass


def test_experts(library: Library, tmp_path: Path) -> None:
    root = save_experts(tmp_path / "b")
    with library.bundle(root, hashes=1) as bundle:
        assert library.info("bundle_info_get", BundleInfo, bundle).experts == 1
        expert = library.made("bundle_expert", bundle, c_uint64(0))
        assert library.text("bundle_manifest", expert) == (root / "transformer_2" / MANIFEST).read_text()
        assert library.info("bundle_info_get", BundleInfo, expert).steps == STEPS - 2
        library("bundle_destroy", expert)
        with pytest.raises(LibraryError, match=r"NOT_FOUND: .*expert 1; wanted fewer than 1"):
            library.made("bundle_expert", bundle, c_uint64(1))
    for change, words in (
        (lambda d: d["experts"]["transformer_2"].update(first_step=STEPS), f"first_step {STEPS}"),
        (lambda d: d["experts"]["transformer_2"].update(first_step=0), "first_step 0"),
        (lambda d: d["experts"]["transformer_2"].update(path="../b/transformer_2"), r"path '\.\./b/transformer_2'"),
        (lambda d: d["files"].pop("transformer_2/manifest.json"), r"transformer_2/manifest\.json, which the manifest does not list"),
        (lambda d: d["files"].pop("transformer_2/model.onnx"), r"another transformer_2/model\.onnx"),
        (lambda d: d.update(experts=[]), "wrong experts"),
    ):
        text = (root / MANIFEST).read_text()
        edit(root, change)
        with pytest.raises(LibraryError, match=words), library.bundle(root):
            pass
        with pytest.raises(InputError):
            Bundle.open(root)
        (root / MANIFEST).write_text(text)


ARRAYS = {
    f"a/{kind.__name__ if hasattr(kind, '__name__') else kind}": np.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)), kind)
    for kind in (
        np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
        np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_,
    )
} | {"scalar": np.asarray(np.float32(3)), "empty": np.zeros((0, 4), np.float16), 'a "name" \\': np.ones(2, np.int8)}  # fmt: skip


def opened(library: Library, path: Path) -> dict[str, Any]:
    """Every tensor of a file."""
    handle, count, found = library.made("tensors_open", str(path).encode()), c_uint64(), {}
    library("tensors_count", handle, byref(count))
    for i in range(count.value):
        said = Tensor()
        library("tensors_get", handle, c_uint64(i), byref(said))
        found[said.name.decode()] = array_of(said)
        again = Tensor()
        library("tensors_find", handle, said.name, byref(again))
        assert (again.data, again.bytes) == (said.data, said.bytes)
    with pytest.raises(LibraryError, match=r"NOT_FOUND: .*no tensor nothing"):
        library("tensors_find", handle, b"nothing", byref(Tensor()))
    library("tensors_destroy", handle)
    return found


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape and found[name].tobytes() == array.tobytes(), name


def test_safetensors_both_ways(library: Library, tmp_path: Path) -> None:
    write_tensors(tmp_path / "theirs.safetensors", ARRAYS, {"vditc": "words"})
    same(opened(library, tmp_path / "theirs.safetensors"), ARRAYS)
    handle = library.made("tensors_open", str(tmp_path / "theirs.safetensors").encode())
    assert library.text("tensors_metadata", handle, b"vditc") == "words"
    with pytest.raises(LibraryError, match=r"NOT_FOUND: .*no metadata other"):
        library("tensors_metadata", handle, b"other", None, c_size_t(0), None)
    library("tensors_destroy", handle)
    told = (Tensor * len(ARRAYS))(*(tensor(array, name) for name, array in ARRAYS.items()))
    library("tensors_write", str(tmp_path / "ours.safetensors").encode(), told, c_uint64(len(told)))
    entries, _ = read_header(tmp_path / "ours.safetensors")
    same({name: np.array(entry.read()) for name, entry in entries.items()}, ARRAYS)
    from safetensors.numpy import save_file

    plain = {name: array for name, array in ARRAYS.items() if name.split("/")[-1] not in ("bfloat16", "float8_e4m3fn")}
    save_file(plain, tmp_path / "library.safetensors")
    same(opened(library, tmp_path / "library.safetensors"), plain)


def test_nothing_is_written_by_halves(library: Library, tmp_path: Path) -> None:
    good, bad = tensor(ARRAYS["scalar"], "a"), tensor(ARRAYS["scalar"], "b")
    bad.bytes = 3
    where = str(tmp_path / "out.safetensors").encode()
    for pair, words in (((good, bad), r"tensor b F32 \[\] in 3 bytes"), ((good, good), "tensor a")):
        with pytest.raises(LibraryError, match=f"ARGUMENT: .*{words}"):
            library("tensors_write", where, (Tensor * 2)(*pair), c_uint64(2))
    with pytest.raises(LibraryError, match=r"VDITC_ERROR_IO: .*no way to write"):
        library("tensors_write", str(tmp_path / "no" / "folder").encode(), (Tensor * 1)(good), c_uint64(1))
    assert list(tmp_path.iterdir()) == []


def header(about: Any, data: bytes = b"") -> bytes:
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes with a header of 0"),
        (b"1234567", "7 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (struct.pack("<Q", 2**63) + b"{}", "a header of"),
        (header({"a": ONE}, b"1234567"), "bytes where its header promises"),
        (header({"a": ONE}, b"123456789"), "bytes where its header promises"),
        (header({"a": {**ONE, "shape": [3]}}, b"12345678"), r"tensor a \S+ ?\[3\] in 8 bytes|F32\[3\] in 8 bytes"),
        (header({"a": {**ONE, "shape": [-2]}}, b"12345678"), r"\[-2\]"),
        (header({"a": {**ONE, "shape": [2**62, 8]}}, b"12345678"), "tensor a"),
        (header({"a": {**ONE, "data_offsets": [8, 0]}}, b"12345678"), "tensor a"),
        (header({"a": {**ONE, "data_offsets": [-8, 0]}}, b"12345678"), "tensor a"),
        (header({"a": {**ONE, "data_offsets": [0, 2**63 - 1]}}, b"12345678"), "tensor a"),
        (header({"a": {**ONE, "data_offsets": [0]}}, b"12345678"), "tensor a"),
        (header({"a": {"dtype": "F32"}}), "tensor a described as"),
        (header({"a": 3}), "tensor a described as"),
        (header({"a": {**ONE, "dtype": "F4"}}, b"12345678"), "tensor a of type F4"),
        (header(b"[]"), "a header that is"),
        (header(b"{"), "JSON"),
        (header(b"[" * 5000), "JSON"),
    ],
)  # fmt: skip
def test_damaged_safetensors(library: Library, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(LibraryError, match=words) as caught:
        library.made("tensors_open", str(path).encode())
    assert caught.value.status in ("VDITC_ERROR_DAMAGED", "VDITC_ERROR_UNSUPPORTED") and str(path) in caught.value.message
    with pytest.raises((InputError, RecursionError)):
        read_header(path)


def test_no_such_file(library: Library, tmp_path: Path) -> None:
    for name in ("tensors_open", "conditioning_open", "bundle_open"):
        extra = (None,) if name == "bundle_open" else ()
        with pytest.raises(LibraryError, match=r"NOT_FOUND: .*no readable (file|manifest) \(No such file or directory\)"):
            library.made(name, str(tmp_path / "x").encode(), *extra)
        with pytest.raises(LibraryError, match=r"ARGUMENT: path: found NULL"):
            library.made(name, None, *extra)
    with pytest.raises(LibraryError, match=r"NOT_FOUND: .*no regular file"):
        library.made("tensors_open", str(tmp_path).encode())


def test_handles_that_are_none(library: Library, root: Path) -> None:
    bundle = library.made("bundle_open", str(root).encode(), None)
    schedule = b'{"_class_name": "FlowMatchEulerDiscreteScheduler"}'
    library("bundle_destroy", bundle)
    for dead in (bundle, c_void_p(0), c_void_p(1), c_void_p(2**64 - 1), c_void_p(id(schedule))):
        for call in (
            lambda d=dead: library.info("bundle_info_get", BundleInfo, d),
            lambda d=dead: library("bundle_verify", d, None),
            lambda d=dead: library("tensors_count", d, byref(c_uint64())),
            lambda d=dead: library("conditioning_shape", d, None, None),
            lambda d=dead: library("schedule_steps", d, byref(c_uint64())),
            lambda d=dead: library("session_cancel", d),
            lambda d=dead: library.made("session_create", d, None),
        ):
            with pytest.raises(
                LibraryError, match=r"VDITC_ERROR_HANDLE: \w+: found (NULL|a handle that was destroyed, or of another kind)"
            ):
                call()
    with pytest.raises(LibraryError, match="VDITC_ERROR_HANDLE"):
        library("bundle_destroy", bundle)
    for kind in ("bundle", "tensors", "conditioning", "schedule", "session"):
        library(f"{kind}_destroy", None)
    again = library.made("bundle_open", str(root).encode(), None)  # takes the place of the first, which stays dead
    with pytest.raises(LibraryError, match="VDITC_ERROR_HANDLE"):
        library("bundle_verify", bundle, None)
    with pytest.raises(LibraryError, match="VDITC_ERROR_HANDLE: tensors"):
        library("tensors_destroy", again)
    library("bundle_destroy", again)


def test_structures_of_other_versions(library: Library, root: Path) -> None:
    with library.bundle(root) as bundle:
        for head, words in (
            ({}, "abi_version 0, struct_size 0"),
            ({"abi_version": 2, "struct_size": ctypes.sizeof(BundleInfo)}, "abi_version 2"),
            ({"abi_version": 1, "struct_size": 16}, "abi_version 1, struct_size 16; wanted abi_version 1, struct_size 128 or more"),
        ):
            with pytest.raises(LibraryError, match=f"VDITC_ERROR_VERSION: vditc_bundle_info: found {words}"):
                library("bundle_info_get", bundle, byref(BundleInfo(**head)))

        class Newer(ctypes.Structure):
            """With a field of a later version behind."""

            _fields_ = (("now", BundleInfo), ("later", c_int32 * 2))

        made = Newer(later=(c_int32 * 2)(5, 6))
        made.now.abi_version, made.now.struct_size = 1, ctypes.sizeof(Newer)
        library("bundle_info_get", bundle, byref(made))
        assert made.now.steps == STEPS and tuple(made.later) == (5, 6) and made.now.struct_size == ctypes.sizeof(Newer)

    from cpp_library import BundleOptions

    class NewerOptions(ctypes.Structure):
        _fields_ = (("now", BundleOptions), ("later", c_int32 * 2))

    options = NewerOptions()
    library("bundle_options_init", byref(options), c_size_t(ctypes.sizeof(options)))
    assert options.now.struct_size == ctypes.sizeof(NewerOptions)
    library("bundle_destroy", library.made("bundle_open", str(root).encode(), byref(options)))
    options.later[1] = 1
    with pytest.raises(LibraryError, match=r"VDITC_ERROR_VERSION: vditc_bundle_options: found fields that this library does not know"):
        library.made("bundle_open", str(root).encode(), byref(options))


def test_names_of_statuses(library: Library) -> None:
    names = [library.raw.vditc_status_name(c_int32(-i)).decode() for i in range(21)]
    assert names[0] == "VDITC_OK" and len(set(names)) == 21 and all(n.startswith("VDITC_") for n in names)
    assert library.raw.vditc_status_name(c_int32(1)) == b"unknown status" and library.raw.vditc_abi_version() == 1
    assert math.isclose(float(library.raw.vditc_version().decode().rpartition(".")[0]), 0.1)
