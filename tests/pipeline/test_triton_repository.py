"""`vditc package --triton`: what is in a repository, that Triton's schema has it, that it needs nothing else, and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import vditc
from tiny_bundle import LATENTS, PROMPT, SECOND
from triton_bundle import TARGET, VERSION, changed, io_of, retargeted, save_built, without
from triton_stub import read_config

from vditc.build_options import BuildOptions
from vditc.bundle import Bundle
from vditc.codec import PixelShuffleCodec
from vditc.errors import InputError
from vditc.pipeline.triton.config import TYPES, ModelConfig, Tensor
from vditc.pipeline.triton.models import chosen_target
from vditc.pipeline.triton.repository import plan_repository, write_repository
from vditc.runtimes.built_with import BuiltWith
from vditc.text_encoder import PAD, WordEmbedding

LIBRARY = b"\x7fELF VDITC_REGISTER_PLUGINS"
ENGINES = ["dit", "text_encoder", "vae_first1", "vae_next"]
DRIVERS = ["pipeline", "pipeline_stream"]
ELEMENTS: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return save_built(tmp_path)


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def check_engine(folder: Path) -> None:
    """The configuration is that of the plan, by the schema's own parser."""
    config, (inputs, outputs) = read_config(folder), io_of(folder / "1" / "model.plan")
    assert (config.name, config.backend, config.max_batch_size) == (folder.name, "tensorrt", 0)
    numbers = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    for said, real in ((config.input, inputs), (config.output, outputs)):
        assert [t.name for t in said] == list(real)
        for tensor in said:
            kind, dims = real[tensor.name]
            assert numbers[tensor.data_type].name == TYPES[ELEMENTS[kind]]
            assert list(tensor.dims) == [-1 if d is None else d for d in dims]
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind), list(group.gpus)) == (1, "KIND_GPU", [0])
    assert config.parameters["execution_context_allocation_strategy"].string_value == "STATIC"


def test_a_model_for_every_engine(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = write_repository(plan_repository(bundle), out)
    assert sizes == {name: len(data) for name, data in sorted(files(out).items())}
    assert sorted(p.name for p in (out / "models").iterdir()) == sorted([*ENGINES, *DRIVERS])
    for name in ENGINES:
        check_engine(out / "models" / name)
    parts = ("text_encoder/engines/{}/model", "vae/engines/{}/first1", "vae/engines/{}/next")
    places = dict(zip(ENGINES, ("engines/{}", *(f"components/{part}" for part in parts)), strict=True))
    for name, place in places.items():
        assert (out / "models" / name / "1" / "model.plan").read_bytes() == (bundle.path / place.format(TARGET) / "model.plan").read_bytes()
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == len(sizes) - 1
    assert json.loads((out / "models/pipeline/1/manifest.json").read_text())["files"] == {}  # those of the bundle are not there
    inputs = {i["name"]: i for i in bundle.manifest.targets[TARGET]["inputs"]}
    dit = {t.name: list(t.dims) for t in read_config(out / "models" / "dit").input}
    assert dit == {name: [d if isinstance(d, int) else -1 for d in i["dims"]] for name, i in inputs.items()}
    for name in DRIVERS:
        config = read_config(out / "models" / name)
        assert (config.name, config.backend, config.max_batch_size) == (name, "python", 0)
        assert config.model_transaction_policy.decoupled == (name == "pipeline_stream")
        assert all(i.optional for i in config.input)
        names = {i.name for i in config.input}
        assert {"prompt", "seed", "size", "steps", "guidance", "encoder_hidden_states", "empty_encoder_hidden_states"} < names
        assert not {"guidance_2", "embedded_guidance", "channels"} & names


@pytest.mark.parametrize("experts", [False, True])
def test_segments_are_models(tmp_path: Path, experts: bool) -> None:
    bundle, out = save_built(tmp_path, experts=experts, segments=True), tmp_path / "out"
    write_repository(plan_repository(bundle), out)
    names = [f"{dit}_segment_{i:02}" for dit in (["dit_high", "dit_low"] if experts else ["dit"]) for i in range(3)]
    assert sorted(p.name for p in (out / "models").iterdir()) == sorted([*names, *ENGINES[1:], *DRIVERS])
    for name in names:
        check_engine(out / "models" / name)
    assert ("guidance_2" in {i.name for i in read_config(out / "models" / "pipeline").input}) == experts
    said = json.loads((out / "models/pipeline/1/pipeline.json").read_text())
    assert [[engine["model"] for engine in chain] for chain in said["experts"]] == [names[:3], *([names[3:]] if experts else [])]


def run_script(out: Path, tmp_path: Path, *words: str) -> list[str]:
    """What run.sh says to tritonserver, behind the library that is to register itself."""
    (tools := tmp_path / "tools").mkdir()
    (tools / "tritonserver").write_text('#!/bin/sh\nprintf "%s\\n" "${VDITC_REGISTER_PLUGINS-none}" "$@"\n')
    (tools / "tritonserver").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    environment.pop("VDITC_REGISTER_PLUGINS", None)
    run = subprocess.run(["sh", str(out / "run.sh"), *words], env=environment, capture_output=True, text=True, check=True, cwd="/")
    return run.stdout.splitlines()


def test_how_the_server_is_started(bundle: Bundle, tmp_path: Path) -> None:
    library = bundle.path / "plugins" / "x86_64" / "libvditc_plugins.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(LIBRARY)
    name = library.relative_to(bundle.path).as_posix()
    bundle, out = retargeted(bundle, plugins={"library": name, "sha256": "", "operators": {"vditc.QLinear": 1}}), tmp_path / "a repository"
    write_repository(plan_repository(bundle), out)
    assert (out / "plugins" / library.name).read_bytes() == library.read_bytes()
    wanted = [
        f"{out}/plugins/{library.name}",
        f"--model-repository={out}/models",
        f"--backend-config=tensorrt,plugins={out}/plugins/{library.name}",
    ]
    assert run_script(out, tmp_path, "--log-verbose=1") == [*wanted, "--log-verbose=1"]
    readme = (out / "README.md").read_text()
    assert f"TensorRT {VERSION}, exactly" in readme and "sm_90" in readme
    at = "/repository/plugins/libvditc_plugins.so"
    assert f"VDITC_REGISTER_PLUGINS={at} tritonserver --model" in readme and f" --backend-config=tensorrt,plugins={at}" in readme
    assert "{" not in readme.replace("{0", "") and "code of the host" not in readme
    assert (out / "requirements.txt").read_text().split() == ["numpy>=1.26", "ml_dtypes>=0.5", "safetensors>=0.6", "tokenizers>=0.21"]


@pytest.mark.parametrize(
    ("options", "parts", "version"),
    [
        ("version-compatible", "version-compatible", "or later;"),
        ("version-compatible,embed-plugins", "version-compatible", "or later;"),
        ("version-compatible", "", ", exactly:"),
        ("", "version-compatible", ", exactly:"),
        ("embed-plugins", "", ", exactly:"),  # which parts have not
    ],
)
def test_engines_with_code_of_the_host(tmp_path: Path, options: str, parts: str, version: str) -> None:
    """Plugins that are in the engines are not loaded beside them; a later TensorRT loads all engines or is not promised."""
    bundle = save_built(tmp_path, options=options)
    for folder in (bundle.path / "components").glob("*/engines/*/*"):
        BuiltWith(module="tensorrt", version=VERSION, arch=("sm_90",), options=BuildOptions.parse(parts)).write(folder)
    (library := bundle.path / "plugins.so").write_bytes(LIBRARY)
    bundle, out = retargeted(bundle, plugins={"library": "plugins.so", "sha256": "", "operators": {}}), tmp_path / "out"
    write_repository(plan_repository(bundle), out)
    said, readme = run_script(out, tmp_path), (out / "README.md").read_text()
    assert "--backend-config=tensorrt,version-compatible=true" in said and "code of the host" in readme
    needed = [line for line in readme.splitlines() if line.startswith("| server |")]
    assert len(needed) == 1 and f"TensorRT {VERSION}{' ' if version.startswith('or') else ''}{version}" in needed[0]
    loaded = "embed-plugins" not in options
    assert any("plugins=" in word for word in said) == (out / "plugins" / library.name).exists() == (said[0] != "none") == loaded


def with_libraries(bundle: Bundle, first: bytes, second: bytes) -> Bundle:
    """Both experts have one, of one file name."""
    inner = Bundle.open(bundle.path / SECOND)
    for own, data in ((inner, second), (bundle, first)):
        (own.path / "plugins.so").write_bytes(data)
        retargeted(own, plugins={"library": "plugins.so", "sha256": "", "operators": {}})
    return Bundle.open(bundle.path)


def test_experts_have_one_plugin_library(tmp_path: Path) -> None:
    bundle = save_built(tmp_path, experts=True)
    same = plan_repository(with_libraries(bundle, LIBRARY, LIBRARY))
    assert same.about["plugins"] == ["plugins/plugins.so"]
    with pytest.raises(InputError, match=r"found two plugin libraries, plugins\.so and transformer_2/plugins\.so; wanted one"):
        plan_repository(with_libraries(bundle, LIBRARY, LIBRARY + b"2"))


@pytest.mark.parametrize(("embedding", "data"), [("", LIBRARY + b"2"), (SECOND, LIBRARY)])
def test_an_expert_that_holds_its_plugins(tmp_path: Path, embedding: str, data: bytes) -> None:
    """The library of the other one is loaded, whichever it is."""
    bundle = with_libraries(save_built(tmp_path, experts=True), LIBRARY, LIBRARY + b"2")
    inner, options = Bundle.open(bundle.path / SECOND), BuildOptions(embed_plugins=True)
    BuiltWith(module="tensorrt", version=VERSION, arch=("sm_90",), options=options).write(bundle.path / embedding / "engines" / TARGET)
    changed(inner)
    write_repository(plan_repository(changed(bundle)), tmp_path / "out")
    assert (tmp_path / "out" / "plugins" / "plugins.so").read_bytes() == data


def test_a_library_that_does_not_register_itself(bundle: Bundle) -> None:
    (bundle.path / "plugins.so").write_bytes(b"\x7fELF")
    old = retargeted(bundle, plugins={"library": "plugins.so", "sha256": "", "operators": {}})
    with pytest.raises(InputError, match="wanted one that reads VDITC_REGISTER_PLUGINS"):
        plan_repository(old)


CLIENT = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
sys.path.append({tests!r})
import types
utils = types.ModuleType("triton_python_backend_utils")
utils.using_decoupled_model_transaction_policy = lambda config: False
sys.modules["triton_python_backend_utils"] = utils
sys.path.insert(0, {folder!r} + "/1")
import model
import vditc
assert vditc.__file__.startswith({folder!r}), vditc.__file__
one = model.TritonPythonModel()
config = '{{"parameters": {{"max_clips": {{"string_value": "2"}}}}}}'
one.initialize(dict(model_config=config, model_repository={folder!r}, model_version="1"))
print(one.pipeline.parts.words.tokens("tokenizer")(["a red kite"])[0].tolist(), one.pipeline.decodes)
import vditc.runtimes.schedulers.registry, vditc.step_cache
print(sorted({{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)))
"""


def test_the_server_needs_no_vditc(bundle: Bundle, tmp_path: Path) -> None:
    """Nor ONNX: its modules are the repository's own, and run where nothing else can be imported."""
    write_repository(plan_repository(bundle), tmp_path / "out")
    shutil.rmtree(bundle.path)
    folder = str(tmp_path / "out" / "models" / "pipeline")
    blocked = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "typer", "rich", "diffusers", "transformers", "PIL")
    script = CLIENT.format(blocked=blocked, tests="", folder=folder)
    path = ":".join(p for p in sys.path if "site-packages" in p)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    first, modules = run.stdout.splitlines()
    assert first == "[[2, 3, 4, 0, 0]] True"
    known = {"vditc", "numpy", "ml_dtypes", "safetensors", "tokenizers", "model", "triton_python_backend_utils"}
    assert {name for name in eval(modules) if not name.startswith("_")} <= known


def test_an_old_python_says_so(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(plan_repository(bundle), tmp_path / "out")
    source = (tmp_path / "out/models/pipeline/1/model.py").read_text().replace("(3, 11)", "(9, 0)")
    with pytest.raises(RuntimeError, match=r"wanted 3\.11 or newer"):
        exec(compile(source, "model.py", "exec"), {"__file__": "model.py"})


def test_the_bundled_models_parts(tmp_path: Path) -> None:
    """Words and a codec, which have no engines: numpy computes them in the driver."""
    from triton_stub import Client

    import vditc as package

    bundle = without(save_built(tmp_path), "text_encoder", "vae")
    weight = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    WordEmbedding((PAD, "a", "red", "kite", "two"), 5, weight).save(bundle.path / "components" / "text_encoder")
    PixelShuffleCodec(2).save(bundle.path / "components" / "vae")
    bundle = changed(bundle)
    write_repository(plan_repository(bundle), tmp_path / "out")
    client = Client(tmp_path / "out")
    found = client.ask(("latents", "frames"), prompt=PROMPT).arrays()
    with package.Sampler(bundle, backend="onnxruntime") as sampler:
        wanted = sampler(PROMPT)
        np.testing.assert_array_equal(found["latents"], wanted.latents)
        np.testing.assert_array_equal(found["frames"], wanted.frames()[None])
    assert found["frames"].shape == (1, LATENTS[1], 8, 12, 3) and set(client.server.calls) == {"dit"}


@pytest.mark.parametrize("out", ["out", "out.tar"])
def test_the_command(bundle: Bundle, tmp_path: Path, out: str) -> None:
    only = vditc("package", "--triton", str(bundle.path))
    assert only.code == 0 and "models/dit/1/model.plan" in only.stdout and f"for TensorRT {VERSION} on sm_90" in only.stdout
    words = ("package", "--triton", str(bundle.path), "-o", str(tmp_path / out))
    run = vditc(*words)
    assert run.code == 0, run.stderr
    assert f"wrote {tmp_path / out}: " in run.stdout and ("tritonserver --model-repository=" in run.stdout) == (out == "out")
    assert vditc(*words).code == 2 and vditc(*words, "--force", "--json").code == 0
    said = json.loads(vditc(*words, "--force", "--json", "--target", TARGET).stdout)
    assert (said["tensorrt"], said["target"], said["bytes"]) == (VERSION, TARGET, sum(said["files"].values()))
    if out == "out.tar":
        subprocess.run(["tar", "xf", out], cwd=tmp_path, check=True)
    assert {name: len(data) for name, data in files(tmp_path / "out").items()} == said["files"]
    assert vditc("package", str(bundle.path)).code == 2


def test_a_damaged_plan_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    plan = bundle.path / "engines" / TARGET / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"found models/dit/1/model\.plan with sha256"):
        write_repository(plan_repository(Bundle.open(bundle.path, hashes=False)), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def engine(**what: Any) -> dict[str, Any]:
    return {"engine": {"status": "built", "backend": "tensorrt", "version": VERSION, **what}}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (engine(status="to build on the device"), "found h100: to build on the device; wanted .*build it where its GPU is"),
        ({"backend": "tensorrt_rtx"}, "found h100: built, by tensorrt_rtx; .*loads engines of TensorRT alone"),
    ],
)
def test_targets_that_triton_does_not_run(bundle: Bundle, about: dict[str, Any], message: str) -> None:
    broken = retargeted(bundle, **about)
    with pytest.raises(InputError, match=message):
        plan_repository(broken, TARGET)
    with pytest.raises(InputError, match="wanted an engine that TensorRT built"):
        plan_repository(broken)
    with pytest.raises(InputError, match="found target 'h200'; wanted an engine"):
        plan_repository(broken, "h200")


def test_one_of_several_targets(bundle: Bundle) -> None:
    two = changed(bundle, targets={**bundle.manifest.targets, "l4": bundle.manifest.targets[TARGET]})
    with pytest.raises(InputError, match="found engines for h100, l4; wanted one of them"):
        chosen_target(two, None)
    assert chosen_target(two, "l4") == "l4"
    with pytest.raises(InputError, match="found target 'h200'; wanted one of h100, l4"):
        chosen_target(two, "h200")


def rebuilt(bundle: Bundle, place: str, **what: Any) -> Bundle:
    known = {"module": "tensorrt", "version": VERSION, "arch": ("sm_90",), **what}
    BuiltWith(**known).write(bundle.path / place)
    return changed(bundle)


def test_engines_that_triton_does_not_load(bundle: Bundle) -> None:
    place = f"engines/{TARGET}"
    for what, message in (
        ({"module": "tensorrt_rtx"}, "found an engine of tensorrt_rtx .* wanted one of TensorRT"),
        ({"weights": "../x.onnx", "options": BuildOptions(strip_weights=True)}, "without its weights"),
        ({"version": "10.3.0"}, r"found engines of TensorRT 10\.16\.1\.11 and 10\.3\.0; wanted one version"),
    ):
        with pytest.raises(InputError, match=message):
            plan_repository(rebuilt(bundle, place, **what))
    (bundle.path / place / "engine.json").unlink()
    with pytest.raises(InputError, match=r"wanted engine\.json"):
        plan_repository(changed(bundle))


@pytest.mark.parametrize("name", ["dit", "vae_next", "pipeline", "pipeline_stream"])
def test_models_of_one_name(bundle: Bundle, name: str) -> None:
    """The second would take the first one's place."""
    root = bundle.path / "components"
    (root / "text_encoder").rename(root / name)
    file = root / "conditioner.json"
    file.write_text(file.read_text().replace('"text_encoder"', f'"{name}"'))
    about = {name if part == "text_encoder" else part: one for part, one in bundle.manifest.components.items()}
    with pytest.raises(InputError, match=f"found two models named {name}; wanted one of each name"):
        plan_repository(changed(bundle, components=about))


def test_parts_without_engines(bundle: Bundle) -> None:
    about = json.loads(json.dumps(bundle.manifest.components))
    about["vae"]["targets"][TARGET]["graphs"]["next"]["engine"] = {"status": "to build on the device", "backend": "tensorrt"}
    with pytest.raises(InputError, match="found vae/next for h100: to build on the device"):
        plan_repository(changed(bundle, components=about))
    del about["vae"]["targets"][TARGET]
    with pytest.raises(InputError, match="found no graphs of vae for h100"):
        plan_repository(changed(bundle, components=about))


def test_tensors_that_no_configuration_has() -> None:
    def text(tensor: Tensor) -> str:
        return ModelConfig(name="m", backend="tensorrt", inputs=[tensor], outputs=[tensor], on_gpu=True).to_text()

    with pytest.raises(InputError, match=r"found x, complex64 \[1\]; wanted one of float64, float32"):
        text(Tensor("x", "complex64", (1,)))
    with pytest.raises(InputError, match=r"found x, float32 \[\]; wanted .* at least one axis; build the engine without segments"):
        text(Tensor("x", "float32", ()))
