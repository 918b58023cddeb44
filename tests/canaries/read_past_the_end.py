"""Lets an operator read past the end of its memory: the sanitized library must not survive this.

The array says that it is longer than it is; so does the tensor over it.
"""

import numpy
import torch

import torch_ext

values = numpy.ones(10_000, dtype=numpy.float32)
too_long = numpy.lib.stride_tricks.as_strided(values, (10_001,), (4,))
torch_ext.prelu(torch.from_numpy(too_long), torch.ones(1))
