"""Cosmos 3 world models, their video side (diffusers Cosmos3OmniTransformer)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch

from vditc.adapter import InputSpec, Loop
from vditc.axis import Axis
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_halves
from vditc.model_dir import ModelDir

Pair = tuple[torch.Tensor, torch.Tensor]
HIDDEN = -10000.0  # added to a score: exp of it is 0, and float16 can hold it
FPS = 24.0  # what the pipeline makes unless told otherwise
_OTHERS = r"lm_head\.|(audio|action)_(proj_|modality_embed)"  # names of weights that make text, sound and actions begin so
_FRAMES_STEP = 4  # frames of a latent step, in which the pipeline measures positions


class Cosmos3(DiffusersAdapter):
    """A language model and a video model of like blocks, side by side: the video attends to itself and to the text, block by block.

    Text to image, text to video, and from given frames to video: `noisy_frames` tells these apart. The checkpoints' sound and action
    are left out, and so is the head that makes text; their weights may be there or not. Clips of a batch may have texts of different
    length, padded on the right. Rows and columns that do not fill a patch are filled with zeros, as 720 pixels, 45 latent rows, need.
    """

    name: ClassVar[str] = "cosmos3"
    description: ClassVar[str] = "Cosmos 3 Nano, Super and Edge, text-to-video and image-to-video"
    model_class: ClassVar[str] = "Cosmos3OmniTransformer"
    in_pipelines: ClassVar[bool] = False
    lists: ClassVar[Mapping[str, str]] = {"layers": "num_hidden_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "480p121": (121, 480, 832),
        "480p189": (189, 480, 832),
        "720p189": (189, 720, 1280),
    }
    roles: ClassVar[Mapping[str, str]] = {
        r"proj_in": "patch_embed",
        r"time_embedder\.linear_1": "time_embed.in",
        r"time_embedder\.linear_2": "time_embed.out",
        r"layers\.\d+\.self_attn\.to_q": "text_attn.q",
        r"layers\.\d+\.self_attn\.to_k": "text_attn.k",
        r"layers\.\d+\.self_attn\.to_v": "text_attn.v",
        r"layers\.\d+\.self_attn\.to_out": "text_attn.out",
        r"layers\.\d+\.self_attn\.add_q_proj": "self_attn.q",
        r"layers\.\d+\.self_attn\.add_k_proj": "self_attn.k",
        r"layers\.\d+\.self_attn\.add_v_proj": "self_attn.v",
        r"layers\.\d+\.self_attn\.to_add_out": "self_attn.out",
        r"layers\.\d+\.mlp\.up_proj": "text_ffn.in",
        r"layers\.\d+\.mlp\.gate_proj": "text_ffn.gate",
        r"layers\.\d+\.mlp\.down_proj": "text_ffn.out",
        r"layers\.\d+\.mlp_moe_gen\.up_proj": "ffn.in",
        r"layers\.\d+\.mlp_moe_gen\.gate_proj": "ffn.gate",
        r"layers\.\d+\.mlp_moe_gen\.down_proj": "ffn.out",
        r"proj_out": "head",
    }

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """All but the table of tokens, what makes text, sound and actions, and what the last block computes for text: nobody reads it."""
        last = rf"layers\.{int(source.config['num_hidden_layers']) - 1}\.(self_attn\.to_(q|out)|mlp\.\w+)"
        unused = re.match(_OTHERS, weight) or re.fullmatch(rf"(embed_tokens|{last})\.weight", weight)
        return not unused and super().is_layer(source, weight)

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One, whose last block need not update the text."""
        return (Loop(modules={"layers": 1}, count=int(config["num_hidden_layers"]), last=1),)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], input_ids [B, text_tokens] and their mask [B, text_tokens]; noisy_frames [B, F],
        0 for a latent frame that is given and stays as it is, else 1; fps [1], frames a second, if positions depend on it."""
        specs = (
            InputSpec("hidden_states", "float32", ("batch", self.latent_channels(source), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("input_ids", "int64", ("batch", "text_tokens"), "ids"),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
            InputSpec("noisy_frames", "int64", ("batch", "frames"), "mask"),
        )
        return (*specs, InputSpec("fps", "float32", (1,), FPS)) if source.config.get("enable_fps_modulation", True) else specs

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """189 frames of 720 x 1280: latent 48 x 45 x 80. Prompts are long, upsampled ones."""
        # One token a side would be traced as another graph.
        side: dict[str, Any] = {"low": int(source.config["latent_patch_size"]) + 1, "unit": "pixels", "stride": 16}
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=48, unit="frames", stride=_FRAMES_STEP, causal=True),
            "height": Axis(default=45, **side),
            "width": Axis(default=80, **side),
            "text_tokens": Axis(default=1024),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """Those that come in."""
        return int(source.config["latent_channel"])

    def build(self, config: Mapping[str, Any]) -> Any:
        """float32, eval; without the layers of text, sound and actions, which take memory and which not every checkpoint holds."""
        model = super().build({**config, "sound_gen": False, "action_gen": False})
        del model.lm_head
        return model

    def check(self, source: ModelDir) -> None:
        """See `DiffusersAdapter`; of what makes text, sound and actions there may be anything."""
        used = {name: entry for name, entry in source.weights.items() if not re.match(_OTHERS, name)}
        super().check(dataclasses.replace(source, weights=used))

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """A batch instead of one packed clip; text hidden by an additive mask; rotary tables made for each axis; plain attention.

        Rotary tables, rotations, norms and packing are the same float32 operations. Attention rounds differently, see
        `plain_attention`, and so does the timestep's projection, made once for each clip instead of each token.
        """
        with replaced(
            (model, "rotary_emb", _Rotary(model)),
            (model, "time_proj", TimeFrequencies(model.time_proj)),
            (model, "forward", functools.partial(_run, model)),
            *((layer.self_attn, "processor", attend) for layer in model.layers),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W], zero in frames that are given."""
        if isinstance(model.rotary_emb, _Rotary):
            return model(**feeds)
        fps = float(feeds["fps"]) if "fps" in feeds else None
        clips = [{n: x[i] for n, x in feeds.items() if n != "fps"} for i in range(len(feeds["timestep"]))]
        return torch.cat([_run_clip(model, fps=fps, **clip) for clip in clips])


def _run_clip(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    input_ids: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    noisy_frames: torch.Tensor,
    fps: float | None,
) -> torch.Tensor:
    """The class as it is on one clip [C, F, H, W], packed as its pipeline packs it: [1, C, F, H, W]."""
    config, device = model.config, hidden_states.device
    count = int(encoder_attention_mask.sum())
    grid = _grid(hidden_states, config.latent_patch_size)
    shift = count + config.unified_3d_mrope_temporal_modality_margin
    places = [p + shift if shifted else p for p, shifted in zip(_places(grid, fps, config, device), _shifted(config), strict=True)]
    video_places = torch.stack([p.flatten() for p in torch.meshgrid(*places, indexing="ij")])
    text, video = torch.arange(count, device=device), torch.arange(video_places.shape[1], device=device)
    noisy = torch.nonzero(noisy_frames).flatten()
    predicted = torch.unflatten(video, 0, (grid[0], -1))[noisy].flatten()
    velocity: torch.Tensor = model(
        input_ids=input_ids[:count],
        text_indexes=text,
        position_ids=torch.cat([text.to(torch.float32).expand(3, -1), video_places], 1),
        und_len=count,
        sequence_length=count + len(video),
        vision_tokens=[hidden_states[None]],
        vision_token_shapes=[grid],
        vision_sequence_indexes=count + video,
        vision_mse_loss_indexes=count + predicted,
        vision_timesteps=timestep.expand(len(predicted)),
        vision_noisy_frame_indexes=[noisy],
        return_dict=False,
    )[0][0]
    return velocity


def _grid(latents: torch.Tensor, patch: int) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens of latents [..., F, H, W]; a patch that is not full counts."""
    frames, height, width = latents.shape[-3:]
    return frames, (height + patch - 1) // patch, (width + patch - 1) // patch


def _places(grid: tuple[int, int, int], fps: float | torch.Tensor | None, config: Any, device: torch.device) -> list[torch.Tensor]:
    """Positions float32 along each axis of the grid, from 0; those of frames are measured in time when `fps` says how."""
    frames, *sides = (torch.arange(size, dtype=torch.float32, device=device) for size in grid)
    if fps is not None:
        frames = frames / (fps / _FRAMES_STEP) * (config.base_fps / _FRAMES_STEP)
    return [frames, *sides]


def _shifted(config: Any) -> tuple[bool, bool, bool]:
    """Which axes of the grid start behind the text, and a margin, instead of at 0."""
    sides = not config.unified_3d_mrope_reset_spatial_ids
    return True, sides, sides


class _Rotary(torch.nn.Module):
    """Rotary tables of text and video, for `rotate_halves`. Each frequency turns with one axis of the grid, or with a word's place.

    Where a clip's video starts depends on the length of its text. The tables of every length are made, and each clip takes its own
    row: so all angles come from sizes alone, which engines compute in float32. In float16 angles of 15000 would say nothing.
    """

    frequencies: torch.Tensor
    signs: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        every = model.rotary_emb.inv_freq
        axis = torch.zeros(len(every), dtype=torch.int64)
        for i in (1, 2):  # rows and columns take every third frequency, as many as they have; frames the rest
            axis[i : 3 * self.config.rope_axes_dim[i] : 3] = i
        self.register_buffer("frequencies", torch.stack([every, *(every * (axis == i) for i in range(3))]), persistent=False)
        self.register_buffer("signs", torch.tensor([-1.0, 1.0])[:, None], persistent=False)

    def text(self, tokens: int, device: torch.device) -> Pair:
        """(cos, sin), each [tokens, head_dim]."""
        return self.halves(*self.turned(torch.arange(tokens, dtype=torch.float32, device=device), 0))

    def video(self, counts: torch.Tensor, tokens: int, grid: tuple[int, int, int], fps: torch.Tensor | None) -> Pair:
        """(cos, sin), each [B, 1, tokens of the grid, head_dim], behind texts of counts [B] of at most `tokens` words."""
        lengths = torch.arange(tokens + 1, dtype=torch.float32, device=counts.device)
        starts = (lengths + self.config.unified_3d_mrope_temporal_modality_margin)[:, None]
        cos: list[torch.Tensor] = []
        sin: list[torch.Tensor] = []
        for i, (places, shifted) in enumerate(zip(_places(grid, fps, self.config, counts.device), _shifted(self.config), strict=True)):
            for tables, table in zip((cos, sin), self.turned(places + starts if shifted else places[None], i + 1), strict=True):
                own = table.index_select(0, counts) if shifted else table
                tables.append(own.reshape(-1, *(size if j == i else 1 for j, size in enumerate(grid)), table.shape[-1]))
        # A frequency of another axis is 0 here: its cosine is 1 and its sine 0, and both leave what the axis itself says.
        every_cos, every_sin = cos[0] * (cos[1] * cos[2]), sin[0] + (sin[1] + sin[2])
        return self.halves(every_cos.flatten(1, 3).unsqueeze(1), every_sin.flatten(1, 3).unsqueeze(1))

    def turned(self, places: torch.Tensor, row: int) -> Pair:
        """Cosines and sines [..., head_dim / 2] at places [...], by that row of the frequencies."""
        angles = places.unsqueeze(-1) * self.frequencies[row]
        return torch.cos(angles), torch.sin(angles)

    def halves(self, cos: torch.Tensor, sin: torch.Tensor) -> Pair:
        """For both halves of a head, sines with their signs."""
        return torch.cat([cos, cos], -1), (sin.unsqueeze(-2) * self.signs).flatten(-2)


class _Given(NamedTuple):
    """What all blocks are given: rotary tables, and what hides keys of the text from words, and of text and video from the video."""

    text: Pair
    video: Pair
    earlier: torch.Tensor  # [T, T]
    seen: torch.Tensor  # [B, 1, 1, T + tokens]


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    input_ids: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    noisy_frames: torch.Tensor,
    fps: torch.Tensor | None = None,
) -> torch.Tensor:
    """The whole model; see `Cosmos3.inputs`."""
    patch, device, words = model.config.latent_patch_size, hidden_states.device, input_ids.shape[1]
    height, width = hidden_states.shape[3:]
    grid = _grid(hidden_states, patch)
    rotary, mask = model.rotary_emb, (1 - encoder_attention_mask.to(torch.float32)) * HIDDEN
    order = torch.arange(words, device=device)
    given = _Given(
        text=rotary.text(words, device),
        video=rotary.video(encoder_attention_mask.sum(1), words, grid, fps),
        earlier=torch.where(order <= order.unsqueeze(1), 0.0, HIDDEN),  # padding is on the right, and so hidden too
        seen=torch.nn.functional.pad(mask, (0, grid[0] * grid[1] * grid[2]))[:, None, None],
    )
    full = torch.nn.functional.pad(hidden_states, (0, grid[2] * patch - width, 0, grid[1] * patch - height))
    patches = torch.unflatten(torch.unflatten(full, 4, (-1, patch)), 3, (-1, patch)).permute(0, 2, 3, 5, 4, 6, 1)
    noisy = noisy_frames.to(torch.float32)[:, :, None, None]
    time = model.time_embedder(model.time_proj(timestep * model.config.timestep_scale))[:, None, None]
    video = (model.proj_in(patches.flatten(4).flatten(2, 3)) + time * noisy).flatten(1, 2)
    text = model.embed_tokens(input_ids)
    for layer in model.layers:
        text, video = layer(text, video, given)
    patches = torch.unflatten(model.proj_out(model.norm_moe_gen(video)), 1, (grid[0], -1)) * noisy
    patches = torch.unflatten(torch.unflatten(patches, 3, (patch, patch, -1)), 2, grid[1:]).permute(0, 6, 1, 2, 4, 3, 5)
    # Cut by number: a slice is a view, and the tracer would ask whether it is the whole, as it is where sides are even.
    rows, columns = (torch.arange(size, device=device) for size in (height, width))
    return patches.flatten(5).flatten(3, 4).index_select(3, rows).index_select(4, columns)


def attend(attn: Any, und_seq: torch.Tensor, gen_seq: torch.Tensor, rotary_emb: _Given) -> Pair:
    """und_seq [B, T, dim], text, attends to earlier words; gen_seq [B, tokens, dim], video, to the text and itself."""
    given = rotary_emb

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (-1, attn.head_dim)).transpose(1, 2)

    def shared(x: torch.Tensor) -> torch.Tensor:  # by neighbouring heads of the queries
        return x.unsqueeze(2).expand(-1, -1, attn.num_key_value_groups, -1, -1).flatten(1, 2)

    query, key, value = attn.norm_q(heads(attn.to_q(und_seq))), attn.norm_k(heads(attn.to_k(und_seq))), heads(attn.to_v(und_seq))
    words = key if attn.k_norm_und_for_gen is None else attn.k_norm_und_for_gen(key)
    query, key, words = (rotate_halves(x, *given.text) for x in (query, key, words))
    text = plain_attention(query, shared(key), shared(value), given.earlier)
    query = rotate_halves(attn.norm_added_q(heads(attn.add_q_proj(gen_seq))), *given.video)
    key = rotate_halves(attn.norm_added_k(heads(attn.add_k_proj(gen_seq))), *given.video)
    keys, values = torch.cat([words, key], 2), torch.cat([value, heads(attn.add_v_proj(gen_seq))], 2)
    video = plain_attention(query, shared(keys), shared(values), given.seen)
    return attn.to_out(text.transpose(1, 2).flatten(2)), attn.to_add_out(video.transpose(1, 2).flatten(2))
