"""Engines of TensorRT and TensorRT-RTX with the plugin library: built, loaded and run on this GPU, with the numbers of the operators."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch

from vditc.plugins.library import Library
from vditc.plugins.packing import pack
from vditc.plugins.plugin_op import DOMAIN, DOMAIN_VERSION
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.plugins.torch_ops import qlinear, quantize_token

Array = npt.NDArray[Any]
M, N, K = 300, 96, 256


def graph(weight: Array, weight_scale: Array) -> bytes:
    """x fp16 [M, K] -> codes -> y fp16 [M, N]: two plugins, codes int8 from one to the other."""
    x = ir.val("x", dtype=ir.DataType.FLOAT16, shape=ir.Shape(["tokens", K]))
    held = [ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in (("weight", weight), ("weight_scale", weight_scale))]
    tokens = QuantizeToken().node([x], "quantize")
    layer = QLinear(n=N, k=K, bits=4).node([*tokens.outputs, *held], "layer")
    layer.outputs[0].name = "y"
    layer.outputs[0].dtype, layer.outputs[0].shape = ir.DataType.FLOAT16, ir.Shape(["tokens", N])
    made = ir.Graph(
        [x], layer.outputs, nodes=[tokens, layer], initializers=held, opset_imports={"": 21, DOMAIN: DOMAIN_VERSION}, name="two"
    )
    return bytes(ir.to_proto(ir.Model(made, ir_version=10)).SerializeToString())


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt"])
def test_an_engine_computes_what_the_operators_do(module: str, library: Library, library_file: Path) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    trt = importlib.import_module(module)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    if builder is None:
        pytest.skip(f"{module} {trt.__version__} takes no sm_{library.sm}")
    assert trt.get_plugin_registry().load_library(str(library_file)) is not None
    random = np.random.default_rng(0)
    weight = pack(random.integers(-8, 8, (N, K), dtype=np.int8), 4)
    weight_scale = random.random(N).astype(np.float32) / 100
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph(weight, weight_scale)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, K), (M, K), (2 * M, K))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, f"{module} {trt.__version__} builds no engine on sm_{library.sm}"
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    assert engine is not None, f"{module} {trt.__version__} does not load its engine on sm_{library.sm}"
    context, stream = engine.create_execution_context(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for tokens in (M, 1, 2 * M):
        x = torch.randn(tokens, K, device="cuda").half()
        y = torch.full((tokens, N), float("nan"), device="cuda", dtype=torch.float16)
        made = quantize_token(x)
        wanted = qlinear(
            made.codes, made.scale, torch.from_numpy(weight).cuda(), torch.from_numpy(weight_scale).cuda(), bits=4, dtype=torch.float16
        )
        torch.cuda.synchronize()
        assert context.set_input_shape("x", tuple(x.shape))
        context.set_tensor_address("x", x.data_ptr())
        context.set_tensor_address("y", y.data_ptr())
        assert context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        assert torch.equal(y, wanted)
