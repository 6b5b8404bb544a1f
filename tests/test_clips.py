from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageSequence

from vditc import clips, digits
from vditc.clips import write_video
from vditc.codec import to_pixels
from vditc.digits import Caption
from vditc.errors import InputError

LOSSY = 6.0  # mean grey levels of 255 that H.264 at its default quality may be off


@pytest.fixture
def clip() -> npt.NDArray[np.float32]:
    return digits.draw(Caption(4, "right"), np.random.default_rng(0))


def test_to_pixels_covers_the_whole_range() -> None:
    assert to_pixels(np.array([[-1.0, 0.0, 1.0, 9.0]])).tolist() == [[0, 128, 255, 255]]
    assert to_pixels(np.array([[-1.0, 1.0]]), 2).tolist() == [[0, 0, 255, 255]] * 2


def test_gif_holds_every_frame(tmp_path: Path, clip: npt.NDArray[np.float32]) -> None:
    clips.write_clip(tmp_path / "clip.gif", clip, scale=2)
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (8, (64, 64), 120, 0)  # type: ignore[attr-defined]
        for i, want in enumerate(to_pixels(clip, 2)):
            image.seek(i)
            assert np.array_equal(np.asarray(image.convert("L")), want)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_same_clip_same_bytes(tmp_path: Path, clip: npt.NDArray[np.float32], suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    clips.write_clip(first, clip)
    clips.write_clip(second, clip)
    assert first.read_bytes() == second.read_bytes()


def test_mp4_shows_the_clip(tmp_path: Path, clip: npt.NDArray[np.float32]) -> None:
    clips.write_clip(tmp_path / "clip.mp4", clip)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "clip.mp4"), pix_fmt="gray", bits_per_pixel=8)
    meta = next(reader)
    frames = np.stack([np.frombuffer(f, np.uint8).reshape(256, 256) for f in reader])
    assert (meta["codec"], meta["size"], meta["fps"]) == ("h264", (256, 256), 8.0)
    assert meta["pix_fmt"].startswith("yuv420p")
    want = to_pixels(clip, 8).astype(float)
    assert frames.shape == want.shape
    assert np.abs(frames - want).mean() < LOSSY


def test_mp4_of_odd_size_is_padded(tmp_path: Path) -> None:
    clips.write_pixels(tmp_path / "odd.mp4", np.zeros((3, 33, 35), np.uint8))
    assert next(imageio_ffmpeg.read_frames(str(tmp_path / "odd.mp4")))["size"] == (36, 34)


def test_unknown_suffix(tmp_path: Path, clip: npt.NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match=r"found suffix '\.avi'; wanted \.mp4 or \.gif"):
        clips.write_clip(tmp_path / "clip.avi", clip)
    assert list(tmp_path.iterdir()) == []


def test_failed_encoder_leaves_nothing(tmp_path: Path, clip: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises((OSError, subprocess.SubprocessError)):
        clips.write_clip(tmp_path / "clip.mp4", clip)
    assert list(tmp_path.iterdir()) == []


def test_sheet_rows_are_clips_and_columns_frames(clip: npt.NDArray[np.float32]) -> None:
    gap = clips.GAP
    image = clips.sheet(np.stack([clip, clip[::-1]]), scale=1)
    assert image.shape == (2 * (32 + gap) + gap, 8 * (32 + gap) + gap)
    for row, shown in enumerate((clip, clip[::-1])):
        for column in range(8):
            y, x = gap + row * (32 + gap), gap + column * (32 + gap)
            assert np.array_equal(image[y : y + 32, x : x + 32], to_pixels(shown[column]))


def test_sheet_labels_take_a_margin(tmp_path: Path, clip: npt.NDArray[np.float32]) -> None:
    plain, labelled = clips.sheet(clip[None]), clips.sheet(clip[None], ["a 4 moving right"])
    margin = labelled.shape[1] - plain.shape[1]
    assert np.array_equal(labelled[:, margin:], plain)
    assert labelled[:, :margin].min() < 100  # ink
    clips.write_sheet(tmp_path / "a.png", clip[None], ["a 4 moving right"])
    clips.write_sheet(tmp_path / "b.png", clip[None], ["a 4 moving right"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), labelled)


def test_sheet_wants_a_label_for_every_clip(clip: npt.NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match="found 2 labels for 1 clips"):
        clips.sheet(clip[None], ["a", "b"])


def test_side_by_side(clip: npt.NDArray[np.float32]) -> None:
    frames = clips.side_by_side({"full precision": clip, "w8a8": clip[::-1]}, scale=4)
    gap, top = clips.GAP, clips.FONT_SIZE + 2 * clips.GAP
    assert frames.shape == (8, top + 128 + gap, 2 * 128 + 3 * gap)
    assert np.array_equal(frames[:, top:-gap, gap : gap + 128], to_pixels(clip, 4))
    assert np.array_equal(frames[:, top:-gap, -gap - 128 : -gap], to_pixels(clip[::-1], 4))
    assert frames[:, :top].min() < 100  # ink


def test_side_by_side_gives_a_long_label_room(clip: npt.NDArray[np.float32]) -> None:
    narrow, wide = (clips.side_by_side({label: clip}, scale=1).shape[2] for label in ("a", "a label wider than the clip"))
    assert wide > narrow == 32 + 2 * clips.GAP


def test_side_by_side_wants_one_shape(clip: npt.NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match=r"found clips of shapes \[\(4, 32, 32\), \(8, 32, 32\)\]; wanted one shape"):
        clips.side_by_side({"a": clip, "b": clip[:4]})


def _colours(frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth pictures that change from frame to frame, a channel for each direction."""
    t, y, x = np.meshgrid(np.linspace(0, 60, frames), np.linspace(40, 200, height), np.linspace(60, 180, width), indexing="ij")
    return np.stack([y + t / 2, x + t / 2, np.full_like(t, 90) + t], -1).astype(np.uint8)


@pytest.mark.parametrize(("suffix", "off"), [(".png", 0), (".y4m", 4), (".mp4", 12), (".gif", 40)])
def test_videos_in_colour_come_back(suffix: str, off: int, tmp_path: Path) -> None:
    """A png is exact; y4m rounds colours to 8 bits of YUV, mp4 is lossy, a gif has a palette."""
    frames = _colours(5, 31, 46)
    write_video(tmp_path / f"clip{suffix}", iter(frames), 8)
    if suffix in (".png", ".gif"):
        with Image.open(tmp_path / f"clip{suffix}") as file:
            read = np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(file)])
    else:
        reader = imageio_ffmpeg.read_frames(str(tmp_path / f"clip{suffix}"))
        width, height = next(reader)["size"]
        read = np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])
    assert read.shape[1:] == ((32, 46, 3) if suffix == ".mp4" else (31, 46, 3))  # yuv420p wants even sides
    assert len(read) == 5
    assert np.abs(read[:, :31, :46].astype(int) - frames).mean() <= off / 4
    assert np.abs(read[:, :31, :46].astype(int) - frames).max() <= off


def test_a_video_of_no_frame_and_of_a_strange_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame"):
        write_video(tmp_path / "clip.mp4", iter(()), 8)
    with pytest.raises(InputError, match=r"\.mp4, \.gif, \.y4m, \.png"):
        write_video(tmp_path / "clip.avi", iter(_colours(1, 4, 4)), 8)
    assert not list(tmp_path.iterdir())
