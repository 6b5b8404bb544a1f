"""Clips as files that people look at: mp4, gif, contact sheets of grey clips, float [F, H, W] in [-1, 1], and videos in colour.

The same clips give the same bytes of gif and png.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vditc.codec import to_pixels
from vditc.errors import InputError
from vditc.files import whole_file

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

VIDEOS = (".mp4", ".gif", ".y4m", ".png")  # endings of videos
SCALE = 8  # a pixel of a clip becomes SCALE x SCALE pixels, unsmoothed
FPS = 8
PAPER = 255  # grey value around clips
INK = 30  # grey value of labels
GAP = 4  # pixels between clips
FONT_SIZE = 14


def write_clip(path: Path, clip: Array, scale: int = SCALE, fps: int = FPS) -> None:
    """Write one clip [F, H, W]; the suffix decides: .mp4 (H.264, yuv420p) or .gif."""
    write_pixels(path, to_pixels(clip, scale), fps)


def write_pixels(path: Path, frames: Pixels, fps: int = FPS) -> None:
    """Write frames uint8 [F, H, W] as .mp4 or .gif (endless)."""
    if path.suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        with whole_file(path) as temporary:
            images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    elif path.suffix == ".mp4":
        with whole_file(path) as temporary:
            _write_mp4(temporary, frames, fps)
    else:
        raise InputError(found=f"suffix {path.suffix!r}", wanted=".mp4 or .gif", where=str(path), fix="rename the output")


def write_video(path: Path, frames: Iterable[Pixels], fps: int) -> None:
    """Write frames uint8 [H, W, 3] as they come, in what the suffix says: .mp4 (H.264, yuv420p), .y4m (yuv444p), .gif or animated .png.

    A png is lossless. It and a gif are held in memory, mp4 and y4m are not. InputError for another suffix, or no frame.
    """
    if path.suffix not in VIDEOS:
        raise InputError(found=f"suffix {path.suffix!r}", wanted=", ".join(VIDEOS), where=str(path), fix="rename the output")
    first, frames = _peeked(frames, path)
    with whole_file(path) as temporary:
        if path.suffix in (".gif", ".png"):
            images = [Image.fromarray(frame) for frame in frames]
            kind = "GIF" if path.suffix == ".gif" else "PNG"
            images[0].save(temporary, kind, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
            return
        height, width, _ = first.shape
        mp4 = ("mp4", "libx264", "yuv420p", 2)
        container, codec, planes, multiple = mp4 if path.suffix == ".mp4" else ("yuv4mpegpipe", "rawvideo", "yuv444p", 1)
        margins = ((0, height % multiple), (0, width % multiple), (0, 0))  # yuv420p halves the colour planes, so both sides must be even
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width + width % multiple, height + height % multiple),
            pix_fmt_in="rgb24",
            pix_fmt_out=planes,
            fps=fps,
            codec=codec,
            macro_block_size=multiple,
            ffmpeg_log_level="error",
            output_params=["-f", container, "-threads", "1", "-fflags", "+bitexact"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(np.pad(frame, margins, mode="edge")))
        writer.close()


def _peeked(frames: Iterable[Pixels], path: Path) -> tuple[Pixels, Iterator[Pixels]]:
    every = iter(frames)
    if (first := next(every, None)) is None:
        raise InputError(found="no frame", wanted="at least one", where=str(path), fix="decode a clip")
    return first, itertools.chain([first], every)


def _write_mp4(path: Path, frames: Pixels, fps: int) -> None:
    # yuv420p halves the colour planes, so both sides must be even: one row or column of paper is added where they are not.
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2)), constant_values=PAPER)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (even.shape[2], even.shape[1]),
        pix_fmt_in="gray",
        pix_fmt_out="yuv420p",
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        ffmpeg_log_level="error",
        # The container is named because `path` has a temporary suffix; one thread and no encoder tag give the same bytes again.
        output_params=["-f", "mp4", "-threads", "1", "-fflags", "+bitexact"],
    )
    writer.send(None)  # starts the encoder
    for frame in even:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def write_sheet(path: Path, clips: Array, labels: Sequence[str] = (), scale: int = 2) -> None:
    """Write a PNG of clips [N, F, H, W]: a row for each clip, a column for each frame, labels (if any) on the left."""
    with whole_file(path) as temporary:
        Image.fromarray(sheet(clips, labels, scale)).save(temporary, "PNG")


def sheet(clips: Array, labels: Sequence[str] = (), scale: int = 2) -> Pixels:
    """The contact sheet of `write_sheet`, uint8 [height, width]."""
    _check_labels(labels, len(clips))
    n, f, h, w = clips.shape
    cells = np.pad(to_pixels(clips, scale), ((0, 0), (0, 0), (GAP, 0), (GAP, 0)), constant_values=PAPER)
    grid = cells.transpose(0, 2, 1, 3).reshape(n * (h * scale + GAP), f * (w * scale + GAP))
    if labels:
        margin = max(_text_width(label) for label in labels) + 2 * GAP
        names = [_label(label, margin, h * scale + GAP, centred=False) for label in labels]
        grid = np.concatenate([np.concatenate(names), grid], 1)
    return np.pad(grid, ((0, GAP), (0, GAP)), constant_values=PAPER)


def side_by_side(clips: Mapping[str, Array], scale: int = SCALE) -> Pixels:
    """Several clips [F, H, W] of one prompt as one, labels above: uint8 [F, height, width], for `write_pixels`."""
    shapes = {clip.shape for clip in clips.values()}
    if len(shapes) != 1:
        raise InputError(
            found=f"clips of shapes {sorted(shapes)}", wanted="one shape", where="side_by_side", fix="sample them with one latent size"
        )
    parts = []
    for label, clip in clips.items():
        pixels = to_pixels(clip, scale)
        frames, _, width = pixels.shape
        title = np.tile(_label(label, max(width, _text_width(label) + GAP), FONT_SIZE + 2 * GAP, centred=True), (frames, 1, 1))
        spare = title.shape[2] - width
        pixels = np.pad(pixels, ((0, 0), (0, 0), (spare // 2, spare - spare // 2)), constant_values=PAPER)
        parts.append(np.pad(np.concatenate([title, pixels], 1), ((0, 0), (0, GAP), (GAP, 0)), constant_values=PAPER))
    return np.pad(np.concatenate(parts, 2), ((0, 0), (0, 0), (0, GAP)), constant_values=PAPER)


def _check_labels(labels: Sequence[str], clips: int) -> None:
    if labels and len(labels) != clips:
        raise InputError(found=f"{len(labels)} labels for {clips} clips", wanted="one each, or none", where="sheet", fix="label every clip")


def _label(text: str, width: int, height: int, *, centred: bool) -> Pixels:
    """uint8 [height, width] with one line of text in the middle of its height."""
    image = Image.new("L", (width, height), PAPER)
    x, anchor = (width / 2, "mm") if centred else (GAP, "lm")
    ImageDraw.Draw(image).text((x, height / 2), text, fill=INK, font=_font(), anchor=anchor)
    return np.asarray(image)


def _text_width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size, Pillow's default is its own outline font
    return font
