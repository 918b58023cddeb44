"""How DTensor may shard the operators: which placements of the arguments give which of the results.

Parts of a batch and parts of an image are computed independently; the gradients of the slopes that
they give are a pending sum. Channels are sharded together with their slopes. DTensor redistributes
everything else first, including a pending sum (``Partial``) as input, because PReLU of a sum is not
the sum of PReLUs.

``torch.distributed.tensor`` is large, so nothing here imports it before the program does.
"""

from typing import Any, TypeAlias

import torch

# On one dimension of a mesh: the placements of the results, and those of the arguments; None
# stands for an argument that is no tensor.
Shardings: TypeAlias = list[tuple[list[Any], list[Any]]]


def register() -> None:
    """Gives DTensor the rules; for :mod:`torch_ext._rules`."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.experimental import register_sharding

    prelu = torch.ops.torch_ext.prelu.default
    prelu_backward = torch.ops.torch_ext.prelu_backward.default
    register_sharding(prelu)(_prelu)
    register_sharding(prelu_backward)(_prelu_backward)
    # DTensor caches how a call was sharded, and considers only int arguments as part of the cache's
    # key. The entry of a call without grad_weight would then be used for one with it. So all
    # arguments from this one on are made part of the key. There is no public way to do this.
    schemas = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    schemas[prelu_backward].static_argnum = 3  # output_mask


def _prelu(input: Any, weight: Any) -> Shardings:
    return [([x], [x, w]) for x, w, _ in _placements(input, weight)]


def _prelu_backward(grad_output: Any, input: Any, weight: Any, output_mask: Any) -> Shardings:
    want_input, want_weight = output_mask
    return [
        ([x if want_input else None, grad_w if want_weight else None], [x, x, w, None])
        for x, w, grad_w in _placements(input, weight)
    ]


def _placements(input: Any, weight: Any) -> list[tuple[Any, Any, Any]]:
    """Of input (and output, and their gradients), weight and grad_weight."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    one_slope = weight.ndim == 0 or weight.shape[0] == 1
    placements: list[tuple[Any, Any, Any]] = [(Replicate(), Replicate(), Replicate())]
    for dim in range(input.ndim):
        if dim == 1 and not one_slope:
            placements.append((Shard(1), Shard(0), Shard(0)))
        else:
            placements.append((Shard(dim), Replicate(), Partial("sum")))
    return placements
