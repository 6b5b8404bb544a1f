"""`vditc package --triton`: a model repository for Triton Inference Server, from a bundle's TensorRT engines, as a folder or a tar.

    OUT/README.md             which server it takes, what goes in and out
    OUT/run.sh                tritonserver with the options that these engines need
    OUT/requirements.txt      packages of the server's Python
    OUT/SHA256SUMS            of all files
    OUT/plugins/...           the plugin library, where engines need it
    OUT/models/dit/1/model.plan, config.pbtxt            a model for every engine: of a transformer in segments one for each of them,
                                                         of two experts dit_high and dit_low; text encoders and the VAE's graphs
    OUT/models/pipeline/1/model.py, python/, ...         samples clips and calls the others; pipeline_stream sends frames as they come

The modules of vditc that sample are in the repository, so that they are those which the engines were compiled with, and the server's
Python gets neither ONNX nor a command line. Every file of the bundle that goes into it is checked on its way.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vditc.bundle import MANIFEST, Bundle
from vditc.conditioner import FILE as CONDITIONER
from vditc.errors import InputError
from vditc.experts import experts_of
from vditc.pipeline.device_archive import imported_modules
from vditc.pipeline.device_package import Content, Piece, open_sink, put_checked
from vditc.pipeline.triton.config import ModelConfig
from vditc.pipeline.triton.interface import pipeline_configs
from vditc.pipeline.triton.models import BACKEND, EngineModels, chosen_target, engine_models, total_bytes
from vditc.pipeline.triton.served_pipeline import FILE as DESCRIPTION
from vditc.pipeline.triton.served_pipeline import Description
from vditc.runtimes.graph_inputs import graph_sizes
from vditc.video_plan import FILE as DECODER

REGISTER = "VDITC_REGISTER_PLUGINS"  # plugins/tensorrt/plugin_library.cpp
ENTRY = "vditc.pipeline.triton.driver"
SUMS, SCRIPT = "SHA256SUMS", "run.sh"
STRATEGY = ("execution_context_allocation_strategy", "STATIC")  # engines of vditc have one profile, which all memory is for
# No syntax of later versions: an older Python must be able to say that it is too old.
_MODEL = '''\
"""Triton's Python backend loads this; the program is in python/."""
import os
import sys

if sys.version_info < (3, 11):
    raise RuntimeError("vditc: found Python %d.%d; wanted 3.11 or newer; use a later release of Triton" % sys.version_info[:2])

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "python"))

from vditc.pipeline.triton.driver import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_BLANK = "0" * 64


@dataclasses.dataclass(frozen=True)
class Repository:
    """What `write_repository` is going to write; `about`: for people and programs."""

    target: str
    content: Mapping[str, Content]
    about: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, before anything is written."""
        known = dict(self.content) | {SUMS: _sums(dict.fromkeys(self.content, _BLANK))}
        return {name: content.size for name, content in sorted(known.items())}


def plan_repository(bundle: Bundle, target: str | None = None) -> Repository:
    """InputError when the bundle has no engines that Triton's TensorRT backend runs."""
    name = chosen_target(bundle, target)
    models = engine_models(bundle, name)
    components = bundle.path / "components"
    encodes = (components / CONDITIONER).exists() or _class(components / "text_encoder") == "WordEmbedding"
    decodes = (components / "vae" / DECODER).exists() or _class(components / "vae") == "PixelShuffleCodec"
    content: dict[str, Content] = {}
    for model in models.every:
        config = ModelConfig(
            name=model.name, backend=BACKEND, inputs=model.inputs, outputs=model.outputs, on_gpu=True, parameters=(STRATEGY,)
        )
        content[f"models/{model.name}/config.pbtxt"] = Content(config.to_text().encode())
        content[f"models/{model.name}/1/model.plan"] = _file(bundle, model.plan)
    configs = pipeline_configs(bundle, encodes=encodes, decodes=decodes)
    driver = _driver(bundle, name, models)
    for config in configs:
        content[f"models/{config.name}/config.pbtxt"] = Content(config.to_text().encode())
        content |= {f"models/{config.name}/1/{inner}": one for inner, one in driver.items()}
    plugins = _plugins(bundle, name, models)
    content |= {_served(path): _file(bundle, path) for path in plugins}
    packages = ["numpy>=1.26", "ml_dtypes>=0.5", "safetensors>=0.6"]
    texts = _texts(components)
    packages += ["tokenizers>=0.21"] if texts else []
    packages += ["ftfy>=6"] if any("ftfy" in text["clean"] for text in texts) else []
    options = [model.built.options for model in models.every]
    about = {
        "target": name,
        "tensorrt": models.version,
        "gpus": list(models.every[0].built.arch),
        "host_code": any(one.host_code for one in options),
        "version_compatible": all(one.version_compatible for one in options),  # then the server's TensorRT may be a later one
        "plugins": [_served(path) for path in plugins],
        "packages": packages,
        "engine_bytes": total_bytes(models.every, bundle),
    }
    content["requirements.txt"] = Content("".join(f"{one}\n" for one in packages).encode())
    content[SCRIPT] = Content(_script(about).encode(), mode=0o755)
    content["README.md"] = Content(_readme(bundle, about, models, configs[0]).encode())
    return Repository(name, content, about)


def write_repository(plan: Repository, out: Path, *, force: bool = False) -> dict[str, int]:
    """Write it to the folder `out`, or to a tar if its name ends so; returns the bytes of every file. Whole or not at all.

    InputError for a file of the bundle that is not as its manifest says; VditcError when the disk is full.
    """
    sizes = plan.sizes
    with open_sink(out, sum(sizes.values()), out.stem, force=force) as sink:
        written = {name: put_checked(sink, name, content) for name, content in sorted(plan.content.items())}
        sink.put(SUMS, _sums(written))
    return sizes


def server_options(about: Mapping[str, Any], root: str) -> list[str]:
    """What tritonserver is told of these engines; `root`: of the repository."""
    found = [f"--model-repository={root}/models"]
    if about["plugins"]:
        found.append(f"--backend-config={BACKEND},plugins={';'.join(f'{root}/{path}' for path in about['plugins'])}")
    if about["host_code"]:  # Triton's name for leave to load it
        found.append(f"--backend-config={BACKEND},version-compatible=true")
    return found


def server_command(about: Mapping[str, Any], root: str) -> str:
    """A line for a shell: what run.sh does."""
    words = ["tritonserver", *(shlex.quote(option) for option in server_options(about, root))]
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in server_environment(about, root).items()), *words])


def server_environment(about: Mapping[str, Any], root: str) -> dict[str, str]:
    """What its environment has: the backend only opens the plugin library, which registers itself when this names its file."""
    (library,) = about["plugins"] or [None]
    return {} if library is None else {REGISTER: f"{root}/{library}"}


def _driver(bundle: Bundle, target: str, models: EngineModels) -> dict[str, Content]:
    """All that lies beside model.py, and it."""
    description = Description(
        target=target,
        prediction=models.prediction,
        sizes=graph_sizes(bundle.file("model.onnx")),
        experts=tuple(tuple(model.served for model in chain) for chain in models.experts),
        parts={part: {graph: model.served for graph, model in own.items()} for part, own in models.parts.items()},
    )
    found = {"model.py": Content(_MODEL.encode()), DESCRIPTION: Content(description.to_text().encode())}
    for folder, one in (("", bundle), *((f"{Path(e.path).relative_to(bundle.path).as_posix()}/", e) for e in bundle.experts.values())):
        found[f"{folder}{MANIFEST}"] = Content(dataclasses.replace(one.manifest, files={}).to_text().encode())
    for name in bundle.manifest.files:
        # What components are read from, beside their graphs.
        if name.startswith("components/") and name.count("/") <= 2 and name.endswith((".json", ".safetensors")):
            found[name] = _file(bundle, name)
    found |= {f"python/{name}": Content(path.read_bytes()) for name, path in imported_modules([ENTRY], functions=False).items()}
    return found


def _file(bundle: Bundle, name: str) -> Content:
    path, entry = bundle.file(name), bundle.manifest.files[name]
    return Content(pieces=(Piece(path, 0, entry.bytes),), whole=(path, entry.sha256))


def _plugins(bundle: Bundle, target: str, models: EngineModels) -> list[str]:
    """The plugin library of experts whose engines do not hold it, or none; InputError for two, or one that does not register itself."""
    found = dict[str, str]()  # sha256 -> name in the bundle
    for expert, chain in zip(experts_of(bundle), models.experts, strict=True):
        own = expert.bundle
        library = own.manifest.targets[target].get("plugins", {}).get("library")
        if library is not None and not chain[0].built.options.embed_plugins:
            found.setdefault(own.manifest.files[library].sha256, own.file(library).relative_to(bundle.path).as_posix())
    if len(found) > 1:
        raise InputError(
            found=f"two plugin libraries, {' and '.join(found.values())}",
            wanted="one: a server registers each plugin once",
            where=f"bundle {bundle.path}, {target}",
            fix="compile both experts with the same library, or build them with the option embed-plugins",
        )
    for name in found.values():
        if REGISTER.encode() not in bundle.file(name).read_bytes():
            raise InputError(
                found="a plugin library that does not register itself where Triton opens it",
                wanted=f"one that reads {REGISTER}",
                where=str(bundle.file(name)),
                fix="build the library again (vditc plugins build), and compile with it",
            )
    return list(found.values())


def _served(library: str) -> str:
    return f"plugins/{Path(library).name}"


def _texts(components: Path) -> list[dict[str, Any]]:
    path = components / CONDITIONER
    return list(json.loads(path.read_text())["text"]) if path.exists() else []


def _class(folder: Path) -> str:
    config = folder / "config.json"
    return str(json.loads(config.read_text()).get("_class_name", "")) if config.exists() else ""


def _sums(digests: Mapping[str, str]) -> Content:
    return Content("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode())


def _script(about: Mapping[str, Any]) -> str:
    options = " \\\n  ".join(f'"{option}"' for option in server_options(about, "$here"))
    named = "".join(f'{name}="{value}"\nexport {name}\n' for name, value in server_environment(about, "$here").items())
    return f"""\
#!/bin/sh
# Starts Triton with what these engines need; options of tritonserver may follow. TensorRT of the server: {about["tensorrt"]}.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
{named}exec tritonserver \\
  {options} \\
  "$@"
"""


def _readme(bundle: Bundle, about: Mapping[str, Any], models: EngineModels, config: ModelConfig) -> str:
    version, model = about["tensorrt"], bundle.manifest.model
    needs = f"TensorRT {version}" + (" or later" if about["version_compatible"] else ", exactly: another release does not load all engines")
    needs += "; engines have code of the host in them, so trust who built them" if about["host_code"] else ""
    rows = [f"| `{m.name}` | {bundle.manifest.files[m.plan].bytes:,} |" for m in models.every]
    inputs = [f"| `{t.name}` | {t.dtype} {list(t.dims)} |" for t in config.inputs]
    text = (Path(str(files("vditc") / "templates")) / "triton.md").read_text(encoding="utf-8")
    notes = []
    if any(one.built.options.weight_streaming is not None for one in models.every):
        notes.append(
            "The engines were built to stream weights. Triton's backend sets no budget for that, so expect all weights on the GPU."
        )
    return text.format(
        model=f"{model.get('class', '')} {model['part']}, recipe {bundle.manifest.recipe.get('name', '')}".strip(),
        target=about["target"],
        needs=needs,
        gpus=", ".join(about["gpus"]),
        packages=" ".join(f'"{one}"' for one in about["packages"]),
        command=server_command(about, "/repository"),
        models="\n".join(rows),
        inputs="\n".join(inputs),
        outputs="\n".join(f"| `{t.name}` | {t.dtype} {list(t.dims)} |" for t in config.outputs),
        bytes=f"{about['engine_bytes'] / 1e9:.2f} GB",
        notes="".join(f"\n{note}\n" for note in notes),
    )
