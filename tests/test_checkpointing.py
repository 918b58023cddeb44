"""Checkpointing, whole and selective: what is recomputed, and gradients that it does not change."""

from collections import Counter
from functools import partial

import pytest
import torch
from cases import finite_slopes, random_values
from recorder import Recorder
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.fixture(params=(torch.float32, torch.bfloat16), ids=("float32", "bfloat16_with_float32"))
def leaves(request, device):
    input = random_values((3, 4, 5), request.param, device)
    assert_both_branches(input)
    return input.requires_grad_(), finite_slopes((4,), torch.float32, device).requires_grad_()


def _block(input, weight):
    return prelu(input.sin(), weight).cos()


def _assert_same_gradients(output, leaves):
    plain = torch.autograd.grad(_block(*leaves).sum(), leaves)
    output.sum().backward()
    for leaf, gradient in zip(leaves, plain):
        assert_same_bits(leaf.grad, gradient)


@pytest.mark.parametrize("reentrant", (True, False), ids=("reentrant", "not_reentrant"))
def test_a_checkpointed_block_runs_twice_and_has_the_same_gradients(reentrant, leaves):
    with Recorder() as recorder:
        output = checkpoint(_block, *leaves, use_reentrant=reentrant)
        assert recorder.seen.count(prelu.default) == 1
        recorder.seen.clear()
        output.sum().backward()
    assert recorder.seen.count(prelu.default) == recorder.seen.count(prelu_backward.default) == 1
    for leaf in leaves:
        leaf.grad = None
    _assert_same_gradients(checkpoint(_block, *leaves, use_reentrant=reentrant), leaves)


def test_nested_checkpoints_have_the_same_gradients(leaves):
    def outer(input, weight):
        return checkpoint(_block, input, weight, use_reentrant=False)

    _assert_same_gradients(checkpoint(outer, *leaves, use_reentrant=False), leaves)


def test_only_what_the_block_was_given_is_kept(leaves):
    """Not the tensors that the operator would save."""
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: packed.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        checkpoint(_block, *leaves, use_reentrant=True)
    assert set(packed) <= {leaf.data_ptr() for leaf in leaves}


# ---- Selective ---------------------------------------------------------------------------------


def _keep_prelu(context, operator, *args, **kwargs):
    keep = operator is prelu.default
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _recompute_prelu(context, operator, *args, **kwargs):
    again = operator is prelu.default
    return CheckpointPolicy.MUST_RECOMPUTE if again else CheckpointPolicy.PREFER_SAVE


# What the policy names, and how often forward's prelu and sin run again in backward.
POLICIES = {
    "list_with_prelu": ([prelu.default], 0, 1),
    "list_without_prelu": ([torch.ops.aten.sin.default], 1, 0),
    "must_save_prelu": (_keep_prelu, 0, 1),
    "must_recompute_prelu": (_recompute_prelu, 1, 0),
}


@pytest.mark.parametrize("policy, prelus, sines", POLICIES.values(), ids=POLICIES)
def test_a_policy_may_name_the_operator(policy, prelus, sines, leaves):
    context_fn = partial(create_selective_checkpoint_contexts, policy)
    run = partial(checkpoint, _block, *leaves, use_reentrant=False, context_fn=context_fn)
    with Recorder() as recorder:
        output = run()
        assert recorder.seen.count(prelu.default) == 1
        recorder.seen.clear()
        output.sum().backward()
    counts = Counter(recorder.seen)
    assert counts[prelu.default] == prelus
    assert counts[torch.ops.aten.sin.default] - 1 == sines  # one is the derivative of cos
    assert counts[prelu_backward.default] == 1
    for leaf in leaves:
        leaf.grad = None
    _assert_same_gradients(run(), leaves)


# ---- In a network ------------------------------------------------------------------------------


def _network(device):
    torch.manual_seed(0)
    blocks = [[nn.Linear(6, 6), torch_ext.PReLU(6)] for _ in range(3)]
    return nn.Sequential(*(layer for block in blocks for layer in block)).to(device)


@pytest.mark.parametrize("autocast", (False, True), ids=("float32", "autocast"))
@pytest.mark.parametrize("reentrant", (True, False), ids=("reentrant", "not_reentrant"))
def test_a_checkpointed_network_trains_like_a_plain_one(reentrant, autocast, device):
    """Under autocast, the second run is in the region of the first."""
    plain, checkpointed = _network(device), _network(device)
    input = random_values((8, 6), torch.float32, device).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        outputs = (
            plain(input),
            checkpoint_sequential(checkpointed, 3, input, use_reentrant=reentrant),
        )
    for output in outputs:
        output.float().square().sum().backward()
    assert_same_bits(*outputs)
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert one.grad.norm() > 0
        assert_same_bits(one.grad, other.grad)
