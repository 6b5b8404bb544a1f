"""A bundle of a whole pipeline whose graphs are written by hand: a transformer, a text encoder and a video decoder of a few nodes each.

No PyTorch is loaded and nothing is compiled, so that what samples from bundles is tested in milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser
from tokenizers import Tokenizer, models, pre_tokenizers

from vditc.adapter import InputSpec
from vditc.axis import Axis, Sizes
from vditc.bundle import Bundle, Manifest, list_files, write_manifest
from vditc.conditioner import Conditioner, TextInput
from vditc.part_graph import PartGraph, State
from vditc.pipeline.manifest_facts import graph_inputs
from vditc.pipeline.schedules import Solver
from vditc.step_cache import StepCache
from vditc.video_plan import VideoPlan

STEPS, FIRST, GUIDANCE, LATENTS = 4, 2, 3.0, (4, 3, 4, 6)
PROMPT, NEGATIVE = "a red kite", "two dogs"
WORDS, LENGTH, WIDTH = ("<pad>", "<unk>", "a", "red", "kite", "two", "dogs"), 5, 8
FRAMES = [2, 3, 3]  # latent frames that the target serves
SECOND = "transformer_2"
SIZES = Sizes(
    {
        "batch": Axis(default=1, unit="clips"),
        "frames": Axis(default=3, high=32, unit="frames", stride=2, causal=True),
        "height": Axis(default=4, multiple=2, unit="pixels", stride=4),
        "width": Axis(default=6, multiple=2, unit="pixels", stride=4),
        "text_tokens": Axis(default=LENGTH),
    },
    {"small": (3, 16, 24)},
)
CACHE = StepCache(coefficients={"prompted": (1.0, 0.0), "unprompted": (1.0, 0.0)}, errors={}, low=0.0, high=10.0, thresholds={"0.3": 100.0})
FILLS: dict[str, str | float] = {"timestep": "timestep"}
HEAD = '<ir_version: 10, opset_import: ["": 21]>'
TRANSFORMER = (
    HEAD
    + """model (float[batch,4,frames,height,width] hidden_states, float[batch] timestep, float[batch,text_tokens,8] encoder_hidden_states)
    => (float[batch,4,frames,height,width] velocity)
<int64[1] tokens = {1}, int64[3] inner = {2, 3, 4}, int64[4] all = {1, 2, 3, 4}, float share = {0.001}>
{
    text = ReduceMean<keepdims=0>(encoder_hidden_states, tokens)
    mixed = MatMul(text, weight)
    told = Unsqueeze(mixed, inner)
    scaled = Mul(timestep, share)
    time = Unsqueeze(scaled, all)
    both = Add(told, time)
    sum = Add(hidden_states, both)
    velocity = Tanh(sum)
}"""
)
TOLD_MORE = (  # with a guidance scale as input, and an image's two channels behind the latents
    TRANSFORMER.replace("4,frames,height,width] hidden_states", "6,frames,height,width] hidden_states, float[batch] guidance")
    .replace(
        "float share = {0.001}", "float share = {0.001}, int64[1] one = {1}, int64[1] begin = {0}, int64[1] own = {4}, int64[1] end = {6}"
    )
    .replace(
        "sum = Add(hidden_states, both)",
        """part = Mul(guidance, share)
    scale = Unsqueeze(part, all)
    latents = Slice(hidden_states, begin, own, one)
    image = Slice(hidden_states, own, end, one)
    mean = ReduceMean(image, one)
    more = Sum(both, scale, mean)
    sum = Add(latents, more)""",
    )
)
ENCODER = (
    HEAD
    + """model (int64[prompts,text_tokens] input_ids, int64[prompts,text_tokens] attention_mask)
    => (float[prompts,text_tokens,8] hidden) { hidden = Gather(table, input_ids) }"""
)
_GROW = """
    rgb = Gather<axis=1>({}, channels)
    seen = Tanh(rgb)
    {} = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(seen, , scales)
"""
_LATENT = "float[1,4,frames,height,width]"
_CONSTANTS = "<int64[3] channels = {{0, 1, 2}}, float[5] scales = {{1, 1, {}, 4, 4}}>"
FIRST_CHUNK = f"{HEAD}model ({_LATENT} z) => (float[1,3,f,h,w] video, {_LATENT} last_next) {_CONSTANTS.format(1)}" + (
    "{" + _GROW.format("z", "video") + "last_next = Identity(z) }"
)
NEXT_CHUNK = f"{HEAD}model ({_LATENT} z, {_LATENT} last) => (float[1,3,f,h,w] video, {_LATENT} last_next) {_CONSTANTS.format(2)}" + (
    "{ both = Add(z, last)" + _GROW.format("both", "video") + "last_next = Identity(z) }"
)


def save_tiny_bundle(folder: Path, *, experts: bool = False, **sampling: Any) -> Bundle:
    """For the portable graph and a target `cpu`; with `experts` a second one walks from step FIRST on. `sampling`: other facts of it."""
    root = folder / "tiny.bundle"
    _save_parts(root / "components")
    manifest = _manifest(root, seed=0, sampling=sampling)
    inner: dict[str, Manifest] = {}
    if experts:
        schedule = Solver.of_config(SCHEDULER).walk(STEPS).schedule.part(range(FIRST, STEPS))
        inner[SECOND] = _manifest(root / SECOND, seed=1, sampling={**sampling, "schedule": schedule.to_json()})
        inner[SECOND] = dataclasses.replace(inner[SECOND], files=list_files(root / SECOND))
        write_manifest(root / SECOND, inner[SECOND])
        manifest = dataclasses.replace(manifest, experts={SECOND: {"path": SECOND, "boundary": 0.5, "first_step": FIRST}})
    write_manifest(root, dataclasses.replace(manifest, files=list_files(root)))
    return Bundle.open(root)


SCHEDULER = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def _manifest(root: Path, seed: int, sampling: dict[str, Any]) -> Manifest:
    weight = np.random.default_rng(seed).standard_normal((WIDTH, LATENTS[0]), np.float32)
    about = {**SIZES.to_json(), "fills": FILLS}
    inputs = graph_inputs(_save(root / "model.onnx", TRANSFORMER, {"weight": weight}, about))
    solver = Solver.of_config(SCHEDULER)
    own = {
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "semantics": None,
        "extra_channels": None,
        "fps": 16,
        "latent_shape": list(LATENTS),
        "schedule": solver.walk(STEPS).schedule.to_json(),
        "solver": solver.to_json(),
        "step_cache": CACHE.to_json(),
    }
    return Manifest(
        vditc="0",
        model={"class": "", "part": SECOND if seed else "transformer", "weights": 1, "digest": ""},
        recipe={"name": "", "method": "", "description": "", "digest": ""},
        layers={},
        kept={},
        mean_bits=32,
        sampling={**own, **sampling},
        inputs=inputs,
        profile={"batch": [1, 2, 2], "frames": FRAMES, "height": [4, 4, 4], "width": [6, 6, 6], "text_tokens": [1, LENGTH, LENGTH]},
        graph={},
        targets={"cpu": {"backend": "onnxruntime", "arch": [], "inputs": inputs, "compute": "fp32", "engine": {"status": "portable"}}},
        quality=None,
        gate={},
        tools={},
        files={},
    )


def _save_parts(components: Path) -> None:
    text = TextInput(
        encoder="text_encoder",
        tokenizer="tokenizer",
        max_length=LENGTH,
        clean=("whitespace",),
        masked=True,
        zero_padding=False,
        empty_hidden=False,
        input="encoder_hidden_states",
        mask_input=None,
    )
    (components / "tokenizer").mkdir(parents=True)
    Conditioner(name="tiny", pipeline="TinyPipeline", fps=16, steps=STEPS, guidance_scale=GUIDANCE, text=(text,)).save(components)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.enable_padding(length=LENGTH, pad_id=0, pad_token="<pad>")
    words.enable_truncation(LENGTH)
    words.save(str(components / "tokenizer" / "tokenizer.json"))
    table = np.random.default_rng(2).standard_normal((len(WORDS), WIDTH), np.float32)
    _save(components / "text_encoder" / "model.onnx", ENCODER, {"table": table})
    last = State("last", (1, LATENTS[0], 1, "height", "width"))
    z = InputSpec("z", "float32", (1, LATENTS[0], "frames", "height", "width"))
    dims = (1, 3, "frames", "height_x4", "width_x4")
    graphs = (
        PartGraph(name="first1", inputs=(z,), output="video", output_dims=dims, writes=(last,)),
        PartGraph(name="next", inputs=(z,), output="video", output_dims=dims, reads=(last,), writes=(last,)),
    )
    for graph, text_of in zip(graphs, (FIRST_CHUNK, NEXT_CHUNK), strict=True):
        _save(components / "vae" / f"{graph.name}.onnx", text_of, {})
    plan = VideoPlan(chunk=1, graphs=graphs, stride=4, mean=(), std=(), scaling=1.0, shift=0.0, tiles=None)
    plan.save(components / "vae")


def _save(path: Path, text: str, weights: dict[str, np.ndarray], about: dict[str, Any] | None = None) -> Path:
    model = parser.parse_model(text)
    for value in [*model.graph.output, *model.graph.node]:  # the text form knows no names with dots
        if isinstance(value, onnx.NodeProto):
            value.output[:] = [name.replace("last_next", "last.next") for name in value.output]
        else:
            value.name = value.name.replace("last_next", "last.next")
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    if about is not None:
        model.metadata_props.add(key="vditc", value=json.dumps(about))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
