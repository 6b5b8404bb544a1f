"""A text encoder and a VAE decoder of a few nodes each, put into a bundle as `vditc compile` leaves them, without tracing anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

from vditc.adapter import InputSpec
from vditc.axis import Axis, Sizes
from vditc.bundle import list_files, read_manifest, write_manifest
from vditc.part_graph import PartGraph, State
from vditc.pipeline.device_files import Part, write_device_files
from vditc.pipeline.part_lowering import clip_profile, lower_part, lowered_name, part_memory, part_profile, part_target
from vditc.profile import Profile
from vditc.progress import SILENT
from vditc.runtimes.graph_inputs import input_specs
from vditc.target import Target
from vditc.video_plan import VideoPlan

WIDTH, CHANNELS, WORDS = 16, 4, 30
GRAPHS = {"text_encoder": ("model",), "vae": ("first1", "next")}
NAMES = ("text_encoder", "vae/first1", "vae/next")  # of jobs
_AXES = {
    "text_tokens": Axis(default=8),
    "height": Axis(default=8, unit="pixels", stride=4),
    "width": Axis(default=8, unit="pixels", stride=4),
}


def add_components(root: Path, targets: Sequence[Target] = ()) -> None:
    """Write both into `components/` of the bundle at `root` and list them; engines of `targets` are for a device to build, or portable."""
    text, vae = root / "components/text_encoder", root / "components/vae"
    _text_encoder(text)
    _decoder(vae)
    manifest = read_manifest(root)
    clip = clip_profile(Profile.from_json(manifest.profile), (2, 8, 8))
    components: dict[str, Any] = {}
    for folder, names in ((text, GRAPHS["text_encoder"]), (vae, GRAPHS["vae"])):
        about = {target.name: _target(folder, names, target, clip) for target in targets}
        known = {"class": folder.name, "stored": "model", "weights": 1_000, "graphs": dict.fromkeys(names, 5), "targets": about}
        components[folder.name] = known | ({"tiled": False} if folder == vae else {})
    sampling = {**manifest.sampling, "latent_shape": [CHANNELS, 2, 8, 8]}
    write_manifest(root, dataclasses.replace(manifest, components=components, sampling=sampling, files=list_files(root)))


def _target(folder: Path, names: Sequence[str], target: Target, clip: Profile) -> dict[str, Any]:
    chosen = part_target(target, text=folder.name == "text_encoder")
    if target.backend == "onnxruntime":
        return {"compute": chosen.compute, "graphs": {name: {"status": "portable"} for name in names}}
    graphs = {}
    for name in names:
        lowered = folder / lowered_name(name, target.name)
        found = lower_part(folder / f"{name}.onnx", lowered, chosen, target.name, compare=True, progress=SILENT)
        ranges = part_profile(folder / f"{name}.onnx", clip, None)
        engine = folder / "engines" / target.name / name
        write_device_files(root=folder, folder=engine, parts=[Part("model", lowered, input_specs(lowered))], target=chosen, profile=ranges)
        status = {"status": "to build on the device", "backend": target.backend}
        graphs[name] = {"nodes": found.nodes, "error": found.error, "lowered": lowered.name, "engine": status}
    return {"compute": chosen.compute, "memory": part_memory(1_000, chosen.compute, eight_bits=False), "graphs": graphs}


def _text_encoder(folder: Path) -> None:
    """Embeddings, a product, and zeros behind the text's end."""
    random = np.random.default_rng(0)
    weights = {"table": random.standard_normal((WORDS, WIDTH)), "dense": random.standard_normal((WIDTH, WIDTH))}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], name="words"),
        helper.make_node("MatMul", ["words", "dense"], ["mixed"], name="mixed"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="mask", to=T.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"], name="column"),
        helper.make_node("Mul", ["mixed", "column"], ["hidden"], name="hidden"),
    ]
    ids = [InputSpec(name, "int64", (1, "text_tokens"), "mask") for name in ("input_ids", "attention_mask")]
    graph = PartGraph(name="model", inputs=tuple(ids), output="hidden", output_dims=(1, "text_tokens", WIDTH))
    _save(folder, graph, nodes, weights, {"last": np.array([2])})


def _decoder(folder: Path) -> None:
    """A product over the channels; the chunks behind the first add what the one before has left."""
    random = np.random.default_rng(1)
    state, latents = State("left", (1, 3, 1, "height", "width")), InputSpec("latents", "float32", (1, CHANNELS, 1, "height", "width"))
    weights, graphs = {"colours": random.standard_normal((3, CHANNELS, 1, 1, 1)).astype(np.float32)}, []
    for name in GRAPHS["vae"]:
        nodes = [helper.make_node("Conv", ["latents", "colours"], ["seen"], name="seen", kernel_shape=[1, 1, 1])]
        reads = (state,) if name == "next" else ()
        nodes += [helper.make_node("Add", ["seen", "left" if reads else "seen"], ["frames"], name="frames")]
        nodes += [helper.make_node("Mul", ["seen", "half"], ["left.next"], name="left.next")]
        graph = PartGraph(name=name, inputs=(latents,), output="frames", output_dims=state.dims, reads=reads, writes=(state,))
        _save(folder, graph, nodes, weights, {"half": np.array(0.5, np.float32)})
        graphs.append(graph)
    plan = VideoPlan(chunk=1, graphs=tuple(graphs), stride=1, mean=(), std=(), scaling=1.0, shift=0.0, tiles=None)
    plan.save(folder)


def _save(folder: Path, graph: PartGraph, nodes: list[Any], weights: dict[str, Any], constants: dict[str, Any]) -> None:
    """The weights lie in one file for all graphs of a part."""
    folder.mkdir(parents=True, exist_ok=True)
    data, offset, tensors = folder / f"{'model' if folder.name == 'text_encoder' else 'first1'}.onnx.data", 0, []
    for name, array in weights.items():
        tensor = onnx.TensorProto(name=name, data_type=T.FLOAT, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in {"location": data.name, "offset": offset, "length": 4 * array.size}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        offset += 4 * array.size
    data.write_bytes(b"".join(array.astype(np.float32).tobytes() for array in weights.values()))
    tensors += [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    kinds = {"int64": T.INT64, "float32": T.FLOAT}
    made = helper.make_graph(
        nodes,
        graph.name,
        [helper.make_tensor_value_info(s.name, kinds[s.dtype], s.dims) for s in graph.all_inputs],
        [helper.make_tensor_value_info(name, T.FLOAT, dims) for name, dims in graph.all_outputs.items()],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    axes = {d: _AXES[d] for s in graph.all_inputs for d in s.dims if isinstance(d, str)}
    about = {"part": folder.name, "model_class": "C", "weights": "model", **Sizes(axes).to_json()}
    about["fills"] = {s.name: s.fill for s in graph.all_inputs}
    model.metadata_props.add(key="vditc", value=json.dumps(about))
    (folder / graph.file).write_bytes(model.SerializeToString())
