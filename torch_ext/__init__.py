"""A fused, learnable PReLU for PyTorch: one pass forward, one pass backward, CPU and CUDA.

    import torch_ext

    output = torch_ext.prelu(input, weight)  # as torch.nn.functional.prelu
    layer = torch_ext.PReLU(64)  # as torch.nn.PReLU
    print(torch_ext.replace_prelu(model))  # every nn.PReLU of a model, in place

The operators are torch.ops.torch_ext.prelu and prelu_backward. `lib/libtorch_ext.so`, which
contains no Python, registers them; C++ programs find it through `cmake_prefix_path`.
"""

import torch as torch  # first: the native libraries resolve against those that torch loads

from torch_ext import _library

__version__ = _library.load()

# Not earlier: these need the library that was just loaded.
from torch_ext import _C, _rules
from torch_ext import inductor as inductor
from torch_ext import onnx as onnx
from torch_ext.fusion import NormPReLU, fuse_norm_prelu, norm_prelu
from torch_ext.monitor import ActivationMonitor
from torch_ext.norms import batch_norm_prelu, instance_norm_prelu
from torch_ext.override import override_aten
from torch_ext.prelu import PReLU, prelu
from torch_ext.relu import parametrize_relu, slope_parameters
from torch_ext.replace import replace_prelu, restore_prelu
from torch_ext.swap_report import SwapReport

_rules.register_when_needed()

__all__ = [
    "ActivationMonitor",
    "NormPReLU",
    "PReLU",
    "SwapReport",
    "__version__",
    "batch_norm_prelu",
    "build_info",
    "cmake_prefix_path",
    "fuse_norm_prelu",
    "instance_norm_prelu",
    "norm_prelu",
    "override_aten",
    "parametrize_relu",
    "prelu",
    "replace_prelu",
    "restore_prelu",
    "slope_parameters",
]

cmake_prefix_path = str(_library.PACKAGE)
"""What CMake needs in CMAKE_PREFIX_PATH for `find_package(torch_ext CONFIG REQUIRED)`."""


def build_info() -> dict[str, object]:
    """What this build contains, and what it was made for.

    Keys: version, torch (its minor version), cuda (None for a CPU build), archs (CUDA
    architectures), cpu_capabilities, openmp, git (commit).
    """
    return _C.build_info()
