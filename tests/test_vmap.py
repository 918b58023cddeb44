"""vmap: one call over a batch of inputs, of weights or of both equals a loop, and stock."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import integer_values, random_values
from reference import assert_both_branches, assert_same_bits
from torch.func import vmap
from transforms import no_vmap_fallback

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.fixture(autouse=True)
def _fallback_is_an_error():
    with no_vmap_fallback():
        yield


def test_the_guard_against_the_fallback_sees_one():
    # (Scoped: what torch.ops remembers of a library that is gone would fail torch.export later on.)
    with torch.library._scoped_library("torch_ext_test", "DEF") as library:
        library.define("without_batching_rule(Tensor input) -> Tensor")
        library.impl("without_batching_rule", torch.clone, "CompositeExplicitAutograd")
        with pytest.raises(RuntimeError, match="vmap fallback which is currently disabled"):
            vmap(torch.ops.torch_ext_test.without_batching_rule)(torch.ones(3, 2))


VMAPS = {
    "input": ((5, 2, 3, 4), 0, (3,), None),
    "input_last": ((2, 3, 4, 5), -1, (3,), None),
    "input_dim_1": ((2, 5, 3), 1, (3,), None),
    "input_shared_weight": ((5, 2, 3), 0, (1,), None),
    "input_0d_weight": ((5, 2, 3), 0, (), None),
    "vectors": ((5, 7), 0, (1,), None),
    "scalars": ((20,), 0, (), None),
    "weight": ((4, 3, 5), None, (5, 3), 0),
    "weight_last": ((4, 3, 5), None, (3, 5), 1),
    "weight_of_one": ((4, 3), None, (5, 1), 0),
    "weight_0d": ((4, 3, 2), None, (5,), 0),
    "both": ((5, 4, 3), 0, (5, 3), 0),
    "both_other_dims": ((4, 3, 5), 2, (3, 5), 1),
    "both_0d": ((20,), 0, (20,), 0),
    "both_samples_are_vectors": ((5, 7), 0, (5, 1), 0),
    "batch_as_large_as_channels": ((3, 4, 3, 3), 0, (3, 3), 1),
}


@pytest.mark.parametrize("shape, dim, slopes, weight_dim", VMAPS.values(), ids=VMAPS)
def test_vmap_equals_a_loop_and_stock(shape, dim, slopes, weight_dim, dtypes, device):
    dtype, weight_dtype = dtypes
    input = random_values(shape, dtype, device, seed=1, zeros=False)
    weight = random_values(slopes, weight_dtype, device, seed=2)
    mapped = vmap(prelu, in_dims=(dim, weight_dim))(input, weight)
    count = input.shape[dim] if dim is not None else weight.shape[weight_dim]
    samples = [
        (
            input if dim is None else input.select(dim, i),
            weight if weight_dim is None else weight.select(weight_dim, i),
        )
        for i in range(count)
    ]
    assert_both_branches(input, mapped)
    assert_same_bits(mapped, torch.stack([prelu(*sample) for sample in samples]))
    if dtype == weight_dtype:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stock's, about a resized output
            assert_same_bits(mapped, vmap(F.prelu, in_dims=(dim, weight_dim))(input, weight))


@pytest.mark.parametrize("shape, dim, slopes, weight_dim", VMAPS.values(), ids=VMAPS)
def test_vmap_of_the_backward_operator_equals_a_loop(shape, dim, slopes, weight_dim, device):
    input, grad_output = (
        integer_values(shape, torch.float32, device, seed=seed) for seed in (1, 2)
    )
    weight = random_values(slopes, torch.float32, device, seed=3)

    def backward(grad_output, input, weight):
        return prelu_backward(grad_output, input, weight, [True, True])

    count = input.shape[dim] if dim is not None else weight.shape[weight_dim]

    def sample(tensor, dim, i):
        return tensor if dim is None else tensor.select(dim, i)

    mapped = vmap(backward, in_dims=(dim, dim, weight_dim))(grad_output, input, weight)
    looped = [
        backward(*map(sample, (grad_output, input, weight), (dim, dim, weight_dim), (i,) * 3))
        for i in range(count)
    ]
    for one, others in zip(mapped, zip(*looped)):
        assert torch.equal(one, torch.stack(others))


def test_vmap_reports_the_errors_of_one_sample(device):
    input, weight = torch.ones(5, 2, 3, device=device), torch.ones(5, 4, device=device)
    with pytest.raises(RuntimeError, match="parameter numbers = 4 and channel size = 3"):
        vmap(prelu)(input, weight)
    with pytest.raises(RuntimeError, match="Type promoting not supported"):
        vmap(prelu)(input, weight[:, :3].double())
    with pytest.raises(RuntimeError, match="Not allow zero-dim input tensor"):
        vmap(prelu)(input[:, 0, 0], weight)


def test_vmaps_nest(device):
    input, weight = (
        random_values((4, 5, 6, 3), torch.float64, device),
        random_values((4, 3), torch.float64, device),
    )

    def nested(operator):
        return vmap(vmap(operator, in_dims=(0, None)))(input, weight)

    assert_same_bits(nested(prelu), nested(F.prelu))


@pytest.mark.parametrize("inner", ((0, None), (None, 0), (0, 0), (2, 1)), ids=str)
@pytest.mark.parametrize("outer", ((0, None), (None, 0), (0, 0), (1, 1)), ids=str)
def test_nested_vmaps_equal_two_loops(outer, inner, device):
    """Over input, weight or both, inside and outside, at other dimensions than the first too."""
    input_shape, weight_shape = [4, 3], [3]
    for dims in (inner, outer):
        input_dim, weight_dim = dims
        if input_dim is not None:
            input_shape.insert(input_dim, 2)
        if weight_dim is not None:
            weight_shape.insert(weight_dim, 2)
    input = random_values(input_shape, torch.float64, device, seed=1)
    weight = random_values(weight_shape, torch.float64, device, seed=2)

    def select(tensors, dims, i):
        return [t if d is None else t.select(d, i) for t, d in zip(tensors, dims)]

    mapped = vmap(vmap(prelu, in_dims=inner), in_dims=outer)(input, weight)
    looped = [
        torch.stack([prelu(*select(select((input, weight), outer, i), inner, j)) for j in range(2)])
        for i in range(2)
    ]
    assert_both_branches(input, mapped)
    assert_same_bits(mapped, torch.stack(looped))


def test_options_of_vmap_change_nothing(device):
    """Chunks, a dimension for the results, a mode for random numbers, of which there are none."""
    input = random_values((5, 2, 3), torch.float64, device)
    weight = random_values((3,), torch.float64, device)
    expected = vmap(prelu, in_dims=(0, None))(input, weight)
    for chunk_size in (1, 2, 5, 7):
        chunked = vmap(prelu, in_dims=(0, None), chunk_size=chunk_size)(input, weight)
        assert_same_bits(chunked, expected)
    assert_same_bits(
        vmap(prelu, in_dims=(0, None), out_dims=-1)(input, weight), expected.movedim(0, -1)
    )
    for randomness in ("error", "different", "same"):
        assert_same_bits(
            vmap(prelu, in_dims=(0, None), randomness=randomness)(input, weight), expected
        )


def test_gradients_flow_through_vmap(device):
    """From outside, by ordinary backward: one graph for the whole batch."""
    input = integer_values((5, 2, 3), torch.float64, device).requires_grad_()
    weight = (integer_values((3,), torch.float64, device, seed=1) / 4).requires_grad_()
    mapped = vmap(prelu, in_dims=(0, None))(input, weight)
    ours = torch.autograd.grad(mapped.square().sum(), (input, weight))
    stock = torch.autograd.grad(
        F.prelu(input.flatten(0, 1), weight).square().sum(), (input, weight)
    )
    assert_both_branches(input, *ours)
    for one, other in zip(ours, stock):
        assert torch.equal(one, other)
