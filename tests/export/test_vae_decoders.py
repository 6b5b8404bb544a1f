from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from safetensors.torch import load_file, save_file
from tiny_pipeline import tiny_cogvideox_vae, tiny_hunyuan_video_vae, tiny_image_vae, tiny_ltx_vae, tiny_wan_vae
from tiny_vaes import CHANNELS, tiny_cosmos_vae, tiny_hunyuan_video15_vae, tiny_ltx2_vae, tiny_magvit_vae, tiny_mochi_vae
from tolerances import VAE_CHUNKS, VAE_GRAPHS
from torch_parts import run_in_torch, saved_vae

from vditc.errors import InputError
from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import open_part
from vditc.export.parts.stage import export_part
from vditc.export.parts.vae import VaeDecoder
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
ALL: dict[str, Callable[[], Any]] = {
    **VAES,
    "image": tiny_image_vae,
    "ltx": tiny_ltx_vae,
    "hunyuan15": tiny_hunyuan_video15_vae,
    "mochi": tiny_mochi_vae,
    "cosmos": tiny_cosmos_vae,
    "magvit": tiny_magvit_vae,
    "ltx2": tiny_ltx2_vae,
}
# Others of a class's configs: norms over a chunk's frames and frames between two; convolutions that see frames behind; one scale for all
# frames, and none, patches without wavelets.
OTHERS: dict[str, Callable[[], Any]] = {
    "magvit": lambda: tiny_magvit_vae(spatial_group_norm=False),
    "ltx2": lambda: tiny_ltx2_vae(decoder_causal=False, decoder_spatial_padding_mode="zeros"),
    "cosmos": lambda: tiny_cosmos_vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5]),
    "cosmos-plain": lambda: tiny_cosmos_vae(latents_mean=None, latents_std=None, patch_type="rearrange", attention_resolutions=()),
}


def _decoded(model: Any, z: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What diffusers makes of the VAE's latents, clipped as its pipelines do."""
    latents = torch.from_numpy(z)
    if type(model).__name__ == "AutoencoderKLCosmos" and model.config.latents_mean is not None:  # its pipelines scale every frame
        values = (model.config.latents_mean, model.config.latents_std)
        mean, std = (torch.tensor(v).view(1, CHANNELS, -1, 1, 1)[:, :, : z.shape[2]] for v in values)
        latents = latents * std + mean
    with torch.no_grad():
        if type(model).__name__ == "AutoencoderKL":
            video = torch.stack([model.decode(frame).sample for frame in latents.unbind(2)], 2)
        else:
            video = model.decode(latents).sample
    clipped: npt.NDArray[np.float32] = video.clamp(-1, 1).numpy()
    return clipped


def _joined(decoder: VideoDecoder, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.concatenate(list(decoder.floats(latents)), 2)


@pytest.mark.parametrize(("name", "make"), [*ALL.items(), *OTHERS.items()])
def test_chunks_decode_as_diffusers_does(name: str, make: Callable[[], Any], tmp_path: Path, rng: np.random.Generator) -> None:
    model = make()
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
    _same_tiles(model, part, plan, rng.standard_normal((1, CHANNELS, frames, *size), np.float32))


def _same_tiles(model: Any, part: VaeDecoder, plan: VideoPlan, latents: npt.NDArray[np.float32]) -> None:
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


@pytest.mark.parametrize(
    ("make", "size", "attributes"),
    [
        (tiny_mochi_vae, (7, 10), {}),
        (tiny_magvit_vae, (7, 10), {}),
        (tiny_ltx2_vae, (5, 8), {}),
        (tiny_hunyuan_video15_vae, (5, 7), {"tile_latent_min_height": 4, "tile_latent_min_width": 4}),
    ],
)
def test_tiles_of_other_classes_are_blended_as_diffusers_does(
    make: Callable[[], Any], size: tuple[int, int], attributes: dict[str, int], tmp_path: Path, rng: np.random.Generator
) -> None:
    """Smaller ones than published, in the same proportions."""
    model = make()
    part = saved_vae(model, tmp_path)
    plan, stride = part.plan(), part.stride
    model.enable_tiling()
    side, step = (64, 48) if stride == 8 else (4 * stride, 3 * stride)
    attributes = {"tile_sample_min_height": side, "tile_sample_min_width": side, **attributes}
    for name, value in {**attributes, "tile_sample_stride_height": step, "tile_sample_stride_width": step}.items():
        setattr(model, name, value)
    assert plan.tiles is not None and plan.tiles.unit == 1
    blend = (side - step,) * 2
    plan = dataclasses.replace(plan, tiles=Tiles(latent=(side // stride,) * 2, step=(step // stride,) * 2, blend=blend, keep=(step, step)))
    _same_tiles(model, part, plan, rng.standard_normal((1, CHANNELS, 2, *size), np.float32))


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timestep_conditioning": True}, "a decoder that takes a time"),
        ({"decoder_inject_noise": (False, True, False, False)}, "adds noise"),
    ],
)
def test_decoders_of_ltx2_with_noise_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    tiny_ltx2_vae(**changes).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=said):
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


@pytest.mark.parametrize("make", [tiny_mochi_vae, tiny_magvit_vae, tiny_ltx2_vae, tiny_hunyuan_video15_vae])
def test_published_tiles_are_those_of_the_class(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    tiles, stride = saved_vae(model, tmp_path).plan().tiles, model.spatial_compression_ratio
    side = model.tile_sample_min_height
    step = getattr(model, "tile_sample_stride_height", int(side * 0.75))
    want = Tiles(latent=(side // stride,) * 2, step=(step // stride,) * 2, blend=(side - step,) * 2, keep=(step, step))
    assert tiles == want and model.tile_sample_min_width == side


def test_cosmos_has_no_tiles(tmp_path: Path) -> None:
    """`enable_tiling()` of the class changes nothing."""
    model = tiny_cosmos_vae()
    assert saved_vae(model, tmp_path).plan().tiles is None
    assert "tile" not in inspect.getsource(type(model)._decode)


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

    mochi = saved_vae(tiny_mochi_vae(), tmp_path / "mochi").plan()
    np.testing.assert_allclose(mochi.to_vae(latents)[0, 0], latents[0, 0] * 0.5 - 0.5, rtol=1e-6, atol=1e-6)
    hunyuan15 = saved_vae(tiny_hunyuan_video15_vae(), tmp_path / "hunyuan15").plan()
    np.testing.assert_allclose(hunyuan15.to_vae(latents), latents / 1.03682, rtol=1e-6)
    magvit = saved_vae(tiny_magvit_vae(), tmp_path / "magvit").plan()
    np.testing.assert_allclose(magvit.to_vae(latents), latents / 0.7125, rtol=1e-6)
    model = tiny_ltx2_vae()
    ltx2 = saved_vae(model, tmp_path / "ltx2").plan()
    mean, std = float(model.latents_mean[1]), float(model.latents_std[1])
    np.testing.assert_allclose(ltx2.to_vae(latents)[0, 1], latents[0, 1] * std + mean, rtol=1e-5)


def test_latents_of_cosmos_are_scaled_by_its_scheduler_and_frame_by_frame(tmp_path: Path, rng: np.random.Generator) -> None:
    model = tiny_cosmos_vae()
    part = saved_vae(model, tmp_path, sigma_data=0.25)
    latents = rng.standard_normal((1, CHANNELS, 3, 2, 2), np.float32)
    values = (model.config.latents_mean, model.config.latents_std)
    mean, std = (torch.tensor(v).view(1, CHANNELS, 7, 1, 1)[:, :, :3] for v in values)
    with torch.no_grad():  # as CosmosTextToWorldPipeline does
        want = model.decode(torch.from_numpy(latents) * std / 0.25 + mean).sample.clamp(-1, 1).numpy()
    np.testing.assert_allclose(_joined(VideoDecoder(part.plan(), run_in_torch(part, model)), latents), want, atol=VAE_CHUNKS)


def test_cosmos_without_the_numbers_that_scale_its_latents(tmp_path: Path) -> None:
    part = saved_vae(tiny_cosmos_vae(), tmp_path)
    assert part.axes()["frames"].high == 7
    with pytest.raises(InputError, match="clips of 8 latent frames; wanted at most 7"):
        type(part)(part.source, range(1, 9))
    digest = part.digest
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"sigma_data": 0.5', '"sigma_data": 0.75'))
    assert part_for(open_part(tmp_path, "vae")).digest != digest
    path.unlink()
    with pytest.raises(InputError, match="sigma_data = None"):
        part_for(open_part(tmp_path, "vae"))


def test_a_vae_that_lacks_a_tensor(tmp_path: Path) -> None:
    model = tiny_wan_vae()
    model.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"1 tensors missing or of another shape, first decoder\.conv_in\.weight"):
        _ = part_for(open_part(tmp_path, "vae")).named
