"""libvditc through ctypes, as any host without a compiler would call it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
from cpp_build import built

Array = npt.NDArray[Any]
T = TypeVar("T", bound=ctypes.Structure)
RANK = 8
DTYPES: dict[Any, int] = {
    np.dtype(kind): number
    for number, kind in enumerate(
        [
            np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
            np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_,
        ],
        start=1,
    )
}  # fmt: skip
HEAD = [("abi_version", c_uint32), ("struct_size", c_uint32)]


class Tensor(ctypes.Structure):
    _fields_ = (
        ("name", c_char_p), ("data", c_void_p), ("bytes", c_uint64), ("dtype", c_int32), ("rank", c_uint32), ("shape", c_int64 * RANK),
    )  # fmt: skip


class Progress(ctypes.Structure):
    _fields_ = (
        *HEAD, ("done", c_uint64), ("total", c_uint64), ("clip", c_uint64), ("step", c_uint64), ("latents", POINTER(c_float)),
        ("latents_bytes", c_uint64),
    )  # fmt: skip


class Frames(ctypes.Structure):
    _fields_ = (
        *HEAD, ("first", c_uint64), ("count", c_uint64), ("total", c_uint64), ("height", c_uint64), ("width", c_uint64),
        ("pixels", POINTER(c_uint8)), ("bytes", c_uint64),
    )  # fmt: skip


PROGRESS = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(Progress))
FRAMES = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(Frames))
PREDICT = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(Tensor), c_uint64, c_int32, c_int32, POINTER(c_float), c_uint64)
LOG = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)


class BundleOptions(ctypes.Structure):
    _fields_ = (*HEAD, ("hashes", c_int32), ("threads", c_int32), ("progress", PROGRESS), ("user", c_void_p))


class BundleInfo(ctypes.Structure):
    _fields_ = (
        *HEAD, ("schema", c_int32), ("steps", c_int32), ("files", c_uint64), ("targets", c_uint64), ("inputs", c_uint64),
        ("experts", c_uint64), ("bytes", c_uint64), ("mean_bits", c_double), ("guidance_scale", c_double), ("latent_shape", c_int64 * 4),
        ("made_by", c_char_p), ("model_class", c_char_p), ("recipe", c_char_p), ("fps", c_int32), ("decodes", c_int32),
        ("encodes", c_int32), ("reserved", c_int32),
    )  # fmt: skip


class FileInfo(ctypes.Structure):
    _fields_ = (*HEAD, ("name", c_char_p), ("bytes", c_uint64), ("sha256", c_char_p))


class TargetInfo(ctypes.Structure):
    _fields_ = (
        *HEAD, ("name", c_char_p), ("backend", c_char_p), ("status", c_char_p), ("version", c_char_p), ("arch", c_char_p),
        ("library", c_char_p), ("plan_bytes", c_uint64),
    )  # fmt: skip


class InputInfo(ctypes.Structure):
    _fields_ = (
        *HEAD, ("name", c_char_p), ("fill", c_char_p), ("dtype", c_int32), ("rank", c_uint32), ("dims", c_int64 * RANK),
        ("axes", c_char_p * RANK), ("smallest", c_int64 * RANK), ("greatest", c_int64 * RANK),
    )  # fmt: skip


class ScheduleOptions(ctypes.Structure):
    _fields_ = (
        *HEAD, ("steps", c_int32), ("patch", c_int32), ("pipeline", c_char_p), ("solver", c_char_p), ("shift", c_double),
        ("size", c_int64 * 3),
    )  # fmt: skip


class Denoiser(ctypes.Structure):
    _fields_ = (*HEAD, ("user", c_void_p), ("predict", PREDICT))


class SessionOptions(ctypes.Structure):
    _fields_ = (
        *HEAD, ("backend", c_char_p), ("denoiser", POINTER(Denoiser)), ("solver", c_char_p), ("step_cache", c_char_p), ("steps", c_int32),
        ("passes", c_int32), ("threads", c_int32), ("device", c_int32), ("shift", c_double), ("guidance", c_double),
        ("guidance_2", c_double), ("embedded_guidance", c_double), ("weight_budget", c_int64),
    )  # fmt: skip


class SessionInfo(ctypes.Structure):
    _fields_ = (*HEAD, ("passes", c_int32), ("steps", c_int32), ("runs_asked", c_uint64), ("runs_skipped", c_uint64))


class LibraryError(Exception):
    """A status that is not VDITC_OK; the message is the library's."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Library:
    """Every function raises `LibraryError`. `raw`: the library itself."""

    def __init__(self, path: Path | None = None) -> None:
        chosen = os.environ.get("VDITC_CPP_LIBRARY")  # a folder of another build, by tests of this one
        self.raw = ctypes.CDLL(str(path or Path(chosen or built()) / "libvditc.so"))
        for name in ("vditc_last_error", "vditc_version", "vditc_status_name"):
            getattr(self.raw, name).restype = c_char_p
        self.raw.vditc_abi_version.restype = c_uint32

    def __call__(self, name: str, *arguments: Any) -> None:
        """`vditc_NAME`."""
        status = getattr(self.raw, f"vditc_{name}")(*arguments)
        if status:
            raise LibraryError(self.raw.vditc_status_name(status).decode(), self.raw.vditc_last_error().decode())

    def made(self, name: str, *arguments: Any) -> c_void_p:
        """The handle that `vditc_NAME(..., &handle)` makes."""
        handle = c_void_p()
        self(name, *arguments, byref(handle))
        return handle

    def text(self, name: str, *arguments: Any) -> str:
        """What `vditc_NAME(..., text, capacity, needed)` writes."""
        needed = c_size_t()
        with contextlib.suppress(LibraryError):
            self(name, *arguments, None, c_size_t(0), byref(needed))
        buffer = ctypes.create_string_buffer(needed.value)
        self(name, *arguments, buffer, needed, None)
        return buffer.value.decode()

    def info(self, name: str, kind: type[T], *arguments: Any) -> T:
        """What `vditc_NAME(..., info)` fills."""
        made = kind(abi_version=1, struct_size=ctypes.sizeof(kind))
        self(name, *arguments, byref(made))
        return made

    def options(self, kind: type[T], name: str, **values: Any) -> T:
        """Defaults of `vditc_NAME_init` with some changes."""
        made = kind()
        self(f"{name}_init", byref(made), c_size_t(ctypes.sizeof(kind)))
        for key, value in values.items():
            setattr(made, key, value)
        return made

    @contextlib.contextmanager
    def bundle(self, path: Path, **options: Any) -> Iterator[c_void_p]:
        """An open bundle."""
        said = self.options(BundleOptions, "bundle_options", **options)
        handle = self.made("bundle_open", str(path).encode(), byref(said))
        try:
            yield handle
        finally:
            self("bundle_destroy", handle)

    @contextlib.contextmanager
    def schedule(self, config: str, steps: int, **options: Any) -> Iterator[c_void_p]:
        """A walk."""
        size = options.pop("size", None) or (0, 0, 0)
        said = self.options(ScheduleOptions, "schedule_options", steps=steps, size=(c_int64 * 3)(*size), **options)
        handle = self.made("schedule_create", config.encode(), byref(said))
        try:
            yield handle
        finally:
            self("schedule_destroy", handle)

    @contextlib.contextmanager
    def session(self, bundle: c_void_p, **options: Any) -> Iterator[c_void_p]:
        """A session; `predict`: a function of (inputs by name, expert, step) that returns a prediction, for backend "host"."""
        predict: Callable[[Mapping[str, Array], int, int], Array] | None = options.pop("predict", None)
        denoiser = Denoiser(abi_version=1, struct_size=ctypes.sizeof(Denoiser))
        if predict is not None:

            def call(_: Any, inputs: Any, count: int, expert: int, step: int, to: Any, size: int) -> int:
                feeds = {inputs[i].name.decode(): array_of(inputs[i]) for i in range(count)}
                made = np.ascontiguousarray(predict(feeds, expert, step), np.float32)
                if made.nbytes != size:
                    return 1
                ctypes.memmove(to, made.ctypes.data, size)
                return 0

            denoiser.predict = PREDICT(call)
            options = {"backend": b"host", "denoiser": ctypes.pointer(denoiser)} | options
        said = self.options(SessionOptions, "session_options", **({"backend": b"null"} | options))
        handle = self.made("session_create", bundle, byref(said))
        try:
            yield handle
        finally:
            self("session_destroy", handle)

    def sample(
        self, session: c_void_p, conditioning: c_void_p, shape: Sequence[int], progress: Callable[[Progress], int] | None = None
    ) -> Array:
        """Latents float32 [clips, *shape]."""
        needed = c_uint64()
        with contextlib.suppress(LibraryError):
            self("session_sample", session, conditioning, PROGRESS(), None, None, c_uint64(0), byref(needed))
        latents = np.full((needed.value // 4 // int(np.prod(shape)), *shape), np.nan, np.float32)
        told = PROGRESS() if progress is None else PROGRESS(lambda _, said: progress(said[0]))
        self("session_sample", session, conditioning, told, None, pointer(latents), c_uint64(latents.nbytes), None)
        return latents

    def decode(self, session: c_void_p, latents: Array, on_frames: Callable[[Frames], int] | None = None) -> list[Array]:
        """Frames uint8 [frames, height, width, 3] of latents [C, F, H, W], as they come."""
        made: list[Array] = []
        raised: list[BaseException] = []

        def call(_: Any, said: Any) -> int:
            try:
                now: Frames = said[0]
                assert now.bytes == now.count * now.height * now.width * 3
                assert now.first == sum(map(len, made))
                made.append(np.ctypeslib.as_array(now.pixels, (now.count, now.height, now.width, 3)).copy())
                return 0 if on_frames is None else on_frames(now)
            except BaseException as error:  # ctypes would print it and go on
                raised.append(error)
                return 1

        given = np.ascontiguousarray(latents, np.float32)
        shape = (c_int64 * 4)(*given.shape)
        try:
            self("session_decode", session, pointer(given), c_uint64(given.nbytes), shape, FRAMES(call), None)
        except LibraryError:
            if raised:
                raise raised[0] from None
            raise
        return made


def pointer(array: Array) -> Any:
    """Of an array's memory, which the caller keeps."""
    return c_void_p(array.ctypes.data)


def tensor(array: Array, name: str | None = None) -> Tensor:
    """Of an array that the caller keeps."""
    shape = (c_int64 * RANK)(*array.shape)
    return Tensor(name and name.encode(), array.ctypes.data, array.nbytes, DTYPES[array.dtype], array.ndim, shape)


def array_of(said: Tensor) -> Array:
    """A copy."""
    dtype = next(kind for kind, number in DTYPES.items() if number == said.dtype)
    raw = ctypes.string_at(said.data, said.bytes) if said.bytes else b""
    return np.frombuffer(raw, dtype).reshape(tuple(said.shape[: said.rank])).copy()
