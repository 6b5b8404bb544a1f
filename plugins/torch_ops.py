"""The kernels as custom operators of PyTorch: `torch.ops.vditc.qlinear`, `quantize_token`, `qattention`.

On CUDA tensors they run by libvditc_plugins.so, on the current stream and with workspace of torch's allocator. On CPU tensors they run by
the same kernels' emulation, many thousand times slower: for tests. They are known to torch.compile and to fake tensors, and have no
gradients. A tensor that is not contiguous, or not at a multiple of 16 bytes, is copied first. Everything that is wrong with the inputs is
a KernelError.

Nothing of it is compiled against torch: it takes torch and the library (`use_library`, or where `vditc plugins build` puts it).
"""

from __future__ import annotations

from vditc.errors import InputError
from vditc.plugins.library import KernelError
from vditc.plugins.torch_launch import library_of, use_library
from vditc.plugins.torch_qattention import qattention
from vditc.plugins.torch_qlinear import qlinear
from vditc.plugins.torch_quantize_token import Tokens, quantize_token

__all__ = ["InputError", "KernelError", "Tokens", "library_of", "qattention", "qlinear", "quantize_token", "use_library"]
