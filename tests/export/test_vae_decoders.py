from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from safetensors.torch import load_file, save_file
from tiny_pipeline import CHANNELS, tiny_cogvideox_vae, tiny_hunyuan_video_vae, tiny_image_vae, tiny_ltx_vae, tiny_wan_vae
from tolerances import VAE_CHUNKS, VAE_GRAPHS
from torch_parts import run_in_torch, saved_vae

from vditc.errors import InputError
from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import open_part
from vditc.export.parts.stage import export_part
from vditc.part_graph import PartGraph
from vditc.progress import SILENT
from vditc.runtimes.parts.session import open_ort_part
from vditc.runtimes.parts.video_decoder import VideoDecoder
from vditc.video_plan import Tiles, TimeTiles, VideoPlan, chunks


def _wan22() -> Any:
    """The residual blocks and the patches of Wan 2.2's VAE."""
    return tiny_wan_vae(is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=8)


VAES: dict[str, Callable[[], Any]] = {
    "wan": tiny_wan_vae,
    "wan22": _wan22,
    "cogvideox": tiny_cogvideox_vae,
    "hunyuan": tiny_hunyuan_video_vae,
}
ALL: dict[str, Callable[[], Any]] = {**VAES, "image": tiny_image_vae, "ltx": tiny_ltx_vae}


def _decoded(model: Any, z: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What diffusers makes of the VAE's latents, clipped as its pipelines do."""
    latents = torch.from_numpy(z)
    with torch.no_grad():
        if type(model).__name__ == "AutoencoderKL":
            video = torch.stack([model.decode(frame).sample for frame in latents.unbind(2)], 2)
        else:
            video = model.decode(latents).sample
    clipped: npt.NDArray[np.float32] = video.clamp(-1, 1).numpy()
    return clipped


def _joined(decoder: VideoDecoder, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.concatenate(list(decoder.floats(latents)), 2)


@pytest.mark.parametrize("name", ALL)
def test_chunks_decode_as_diffusers_does(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model = ALL[name]()
    part = saved_vae(model, tmp_path)
    plan = part.plan()
    decoder = VideoDecoder(plan, run_in_torch(part, model))
    for frames, height, width in ((1, 2, 3), (2, 3, 2), (5, 2, 2)) if name != "cogvideox" else ((1, 2, 3), (4, 3, 2), (5, 2, 2)):
        latents = rng.standard_normal((1, CHANNELS, frames, height, width), np.float32)
        want = _decoded(model, plan.to_vae(latents))
        got = _joined(decoder, latents)
        np.testing.assert_allclose(got, want, atol=VAE_CHUNKS, err_msg=f"{frames} frames")


@pytest.mark.parametrize("name", VAES)
def test_tiles_are_blended_as_diffusers_does(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model = VAES[name]()
    part = saved_vae(model, tmp_path)
    plan = part.plan()
    model.enable_tiling()
    if name != "cogvideox":  # tiles have a fixed number of pixels, more than a test wants to decode
        model.tile_sample_min_height = model.tile_sample_min_width = 64
        model.tile_sample_stride_height = model.tile_sample_stride_width = 48
        assert plan.tiles is not None
        latent, step = 64 // plan.stride, 48 // plan.stride
        small = Tiles(latent=(latent, latent), step=(step, step), blend=(16, 16), keep=(48, 48), unit=plan.tiles.unit)
        plan = dataclasses.replace(plan, tiles=small)
    size = {"cogvideox": (8, 13), "hunyuan": (7, 10)}.get(name, (19, 21))
    frames = 5 if name == "hunyuan" else 2  # tiles of time too
    latents = rng.standard_normal((1, CHANNELS, frames, *size), np.float32)
    want = _decoded(model, plan.to_vae(latents))
    got = _joined(VideoDecoder(plan, run_in_torch(part, model), tiled=True), latents)
    np.testing.assert_allclose(got, want, atol=VAE_CHUNKS)
    whole = _joined(VideoDecoder(plan, run_in_torch(part, model)), latents)
    assert np.abs(whole - want).max() > 10 * VAE_CHUNKS  # tiles are another computation


def test_tiles_of_time_are_blended_as_diffusers_does(tmp_path: Path, rng: np.random.Generator) -> None:
    model = tiny_hunyuan_video_vae()
    part = saved_vae(model, tmp_path)
    decoder = VideoDecoder(part.plan(), run_in_torch(part, model))
    made: dict[int, list[int]] = {}
    for frames in (4, 7, 8, 9):
        latents = rng.standard_normal((1, CHANNELS, frames, 1, 2), np.float32)
        pieces = list(decoder.floats(latents))
        np.testing.assert_allclose(np.concatenate(pieces, 2), _decoded(model, part.plan().to_vae(latents)), atol=VAE_CHUNKS)
        made[frames] = [piece.shape[2] for piece in pieces]
    assert made == {4: [13], 7: [13, 12], 8: [13, 12, 4], 9: [13, 12, 8]}  # as they are made


TIME = TimeTiles(latent=5, step=3, whole=4, lead=1, blend=4, keep=12)


@pytest.mark.parametrize(
    ("frames", "want"),
    [
        (1, [(0, 1)]),
        (4, [(0, 4)]),
        (5, [(0, 5), (3, 2)]),
        (7, [(0, 5), (3, 4)]),  # and nothing of one at 6, which is lead alone
        (33, [*((i, 5) for i in range(0, 28, 3)), (30, 3)]),
    ],
)
def test_spans_of_time_tiles(frames: int, want: list[tuple[int, int]]) -> None:
    assert TIME.spans(frames) == want


def test_graphs_are_those_of_the_tiles_of_time(tmp_path: Path) -> None:
    part = saved_vae(tiny_hunyuan_video_vae(), tmp_path)
    names = [[g.name for g in type(part)(part.source, frames).graphs()] for frames in ([1], [33], [7, 8], ())]
    assert names == [["tile1"], ["tile3", "tile5"], ["tile2", "tile4", "tile5"], [f"tile{i}" for i in range(1, 6)]]
    plan = type(part)(part.source, [33]).plan()
    plan.check(33)
    with pytest.raises(InputError, match="a clip with a tile of time of 4 latent frames; wanted one of 3, 5"):
        plan.check(10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_graphs_decode_as_diffusers_does(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """In ONNX Runtime, at sizes that no tracer saw; chunks share one file of weights."""
    model = ALL[name]()
    part = saved_vae(model, tmp_path)
    part = type(part)(part.source, [1, 5])
    facts = export_part(part, tmp_path / "onnx", SILENT)
    decoder = VideoDecoder(part.plan(), lambda graph: open_ort_part(tmp_path / "onnx" / graph.file))
    for frames, height, width in ((1, 2, 3), (5, 3, 2)):
        latents = rng.standard_normal((1, CHANNELS, frames, height, width), np.float32)
        np.testing.assert_allclose(_joined(decoder, latents), _decoded(model, part.plan().to_vae(latents)), atol=VAE_GRAPHS)
    stored = sum(4 * p.numel() for n, p in model.named_parameters() if part.used(n))
    assert facts.data_bytes < 1.3 * stored  # not once for every graph


def test_a_decoder_that_denoises_is_refused(tmp_path: Path) -> None:
    tiny_ltx_vae().save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"timestep_conditioning": false', '"timestep_conditioning": true'))
    with pytest.raises(InputError, match="a decoder that takes a time"):
        part_for(open_part(tmp_path, "vae"))


def test_classes_that_are_not_exported_say_why(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    tiny_image_vae().save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"AutoencoderKL"', '"AutoencoderKLAllegro"'))
    with pytest.raises(InputError, match="AutoencoderKLAllegro: it decodes only in tiles"):
        part_for(open_part(tmp_path, "vae"))


def test_published_tiles(tmp_path: Path) -> None:
    assert saved_vae(tiny_wan_vae(scale_factor_spatial=8), tmp_path / "a").plan().tiles == Tiles(
        latent=(32, 32), step=(24, 24), blend=(64, 64), keep=(192, 192)
    )
    assert saved_vae(tiny_cogvideox_vae(), tmp_path / "b").plan().tiles == Tiles(latent=(6, 10), step=(5, 8), blend=(8, 16), keep=(40, 64))


@pytest.mark.parametrize(
    ("frames", "chunk", "want"),
    [(1, 1, [1]), (3, 1, [1, 1, 1]), (1, 2, [1]), (2, 2, [2]), (3, 2, [3]), (5, 2, [3, 2]), (6, 2, [2, 2, 2])],
)
def test_chunk_lengths(frames: int, chunk: int, want: list[int]) -> None:
    assert chunks(frames, chunk) == want


def test_graphs_are_those_of_the_clip_lengths(tmp_path: Path) -> None:
    part = saved_vae(tiny_cogvideox_vae(), tmp_path)
    names = [[g.name for g in type(part)(part.source, frames).graphs()] for frames in ([1], [13], [2, 4], range(1, 6))]
    assert names == [["first1"], ["first3", "next"], ["first2", "next"], ["first1", "first2", "first3", "next"]]
    plan = type(part)(part.source, [13]).plan()
    with pytest.raises(InputError, match="first chunk has 2 latent frames; wanted one of 3"):
        VideoDecoder(plan, run_in_torch(part, None)).decode(np.zeros((1, CHANNELS, 4, 4, 4), np.float32))


def test_a_clip_of_one_chunk_keeps_no_states(tmp_path: Path) -> None:
    part = saved_vae(tiny_wan_vae(), tmp_path)
    (graph,) = type(part)(part.source, [1]).graphs()
    assert not graph.writes


def test_frames_are_rounded_as_images(tmp_path: Path, rng: np.random.Generator) -> None:
    model = tiny_wan_vae()
    part = saved_vae(model, tmp_path)
    plan = part.plan()
    latents = rng.standard_normal((1, CHANNELS, 3, 4, 4), np.float32)
    got = VideoDecoder(plan, run_in_torch(part, model)).decode(latents)
    with torch.no_grad():
        video = model.decode(torch.from_numpy(plan.to_vae(latents))).sample
    want = np.stack([np.asarray(image) for image in VideoProcessor(vae_scale_factor=4).postprocess_video(video, "pil")[0]])
    assert got.dtype == np.uint8 and got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= 1 and (got != want).mean() < 0.01  # a float next to one half


def test_a_graph_is_opened_once_for_a_clip(tmp_path: Path) -> None:
    model = tiny_wan_vae()
    part = saved_vae(model, tmp_path)
    opened: list[str] = []
    in_torch = run_in_torch(part, model)

    def open_graph(graph: PartGraph) -> Any:
        opened.append(graph.name)
        return in_torch(graph)

    stream = VideoDecoder(part.plan(), open_graph).stream(np.zeros((1, CHANNELS, 4, 2, 2), np.float32))
    assert [len(frames) for frames in stream] == [1, 2, 2, 2]
    assert opened == ["first1", "next"]


@pytest.mark.parametrize("make", [tiny_wan_vae, tiny_hunyuan_video_vae])
def test_plan_survives_saving(make: Callable[[], Any], tmp_path: Path) -> None:
    plan = saved_vae(make(), tmp_path).plan()
    plan.save(tmp_path)
    assert VideoPlan.load(tmp_path) == plan
    (tmp_path / "decoder.json").write_text("{}")
    with pytest.raises(InputError, match="wrong keys"):
        VideoPlan.load(tmp_path)


def test_latents_are_scaled_as_the_config_says(tmp_path: Path, rng: np.random.Generator) -> None:
    latents = rng.standard_normal((1, CHANNELS, 1, 2, 2), np.float32)
    wan = saved_vae(tiny_wan_vae(), tmp_path / "wan").plan()
    np.testing.assert_allclose(wan.to_vae(latents)[0, 1], latents[0, 1] * 2.0 - 0.2, rtol=1e-6)
    cogvideox = saved_vae(tiny_cogvideox_vae(), tmp_path / "cogvideox").plan()
    np.testing.assert_allclose(cogvideox.to_vae(latents), latents / 1.15258426, rtol=1e-6)


def test_a_vae_that_lacks_a_tensor(tmp_path: Path) -> None:
    model = tiny_wan_vae()
    model.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"1 tensors missing or of another shape, first decoder\.conv_in\.weight"):
        _ = part_for(open_part(tmp_path, "vae")).named
