"""First on PYTHONPATH, it puts the builder of fake_rtx.py in the place of TensorRT-RTX in every process."""

from fake_builder.fake_rtx import FakeRTX

from vditc.runtimes.registry import BACKENDS

BACKENDS["tensorrt_rtx"] = FakeRTX
