"""Autocast regions: nested, switched off, of CUDA, and with custom functions or torch.func inside."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, finite_slopes, integer_values, random_values
from recorder import Recorder
from reference import assert_both_branches, assert_same_bits, dtype_or_error
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from transforms import assert_equal_trees

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


# Regions around a call, from the outermost: the autocast dtype, or None where it is switched off.
REGIONS = {
    "off": (None,),
    "one": (torch.bfloat16,),
    "same_again": (torch.float16, torch.float16),
    "other_dtype": (torch.float16, torch.bfloat16),
    "switched_off": (torch.bfloat16, None),
    "off_and_on": (torch.bfloat16, None, torch.float16),
    "off_around": (None, torch.float16),
}


def _region(device, target):
    if target is None:
        return torch.autocast(device, enabled=False)
    return torch.autocast(device, dtype=target)


@pytest.mark.parametrize("regions", REGIONS.values(), ids=REGIONS)
def test_nested_and_disabled_regions_are_pytorchs(regions, dtype, device):
    """Inside all of them, and after each that is left."""
    input = random_values((2, 3, 4), dtype, device)
    weight = finite_slopes((3,), dtype, device)
    left = []
    for target in regions:
        left.append((target, contextlib.ExitStack()))
        left[-1][1].enter_context(_region(device, target))
    while left:
        target, region = left.pop()
        expected = dtype if target is None or dtype == torch.float64 else target
        assert (
            dtype_or_error(prelu, input, weight)
            == dtype_or_error(F.prelu, input, weight)
            == expected
        )
        region.close()
    assert prelu(input, weight).dtype == dtype


def test_autocast_of_another_device_does_nothing():
    torch.set_autocast_enabled("cuda", True)
    try:
        assert torch.is_autocast_enabled("cuda")
        assert prelu(torch.ones(2, 3), torch.ones(3)).dtype == torch.float32
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("input_dtype", DTYPES, ids=str)
def test_cuda_regions_have_pytorchs_dtypes(input_dtype, weight_dtype, autocast_dtype):
    """On fake CUDA tensors, which need no GPU: the kernel of CUDA's autocast key is the real one."""
    with FakeTensorMode():
        input = torch.ones(2, 3, dtype=input_dtype, device="cuda")
        weight = torch.ones(3, dtype=weight_dtype, device="cuda")
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", autocast_dtype)
    torch.set_autocast_enabled("cuda", True)
    try:
        outcome = dtype_or_error(prelu, input, weight)
        assert outcome == dtype_or_error(F.prelu, input, weight)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
        torch.clear_autocast_cache()
    if torch.float64 not in (input_dtype, weight_dtype):
        assert outcome == autocast_dtype


# ---- Casts, functions and transforms inside a region --------------------------------------------


def test_a_leaf_that_is_used_again_is_cast_once(autocast_dtype, device):
    """Autocast's cache serves the input; a float32 slope is never cast."""
    input = random_values((2, 3, 4), torch.float32, device).requires_grad_()
    weight = finite_slopes((3,), torch.float32, device).requires_grad_()
    with Recorder() as recorder, torch.autocast(device, dtype=autocast_dtype):
        first, second = prelu(input, weight), prelu(input, weight)
    cast = torch.ops.aten._to_copy.default
    assert recorder.seen.count(cast) == 1 and recorder.seen.count(prelu.default) == 2
    (first + 2 * second).sum().backward()
    once = prelu_backward(torch.ones_like(first), input.to(autocast_dtype), weight, [True, True])
    assert_both_branches(input, *once)
    torch.testing.assert_close(weight.grad, 3 * once[1])
    with Recorder() as recorder, torch.autocast(device, dtype=autocast_dtype, cache_enabled=False):
        prelu(input, weight), prelu(input, weight)
    assert recorder.seen.count(cast) == 2


@pytest.mark.parametrize("cast_inputs", (None, torch.float32), ids=("as_around", "float32"))
def test_inside_a_custom_function(cast_inputs, device):
    """torch.amp.custom_fwd keeps the region's state, or casts to a dtype and leaves the region."""

    class Twice(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type=device, cast_inputs=cast_inputs)
        def forward(ctx, input, weight):
            ctx.save_for_backward(input, weight)
            return 2 * prelu(input, weight)

        @staticmethod
        @torch.amp.custom_bwd(device_type=device)
        def backward(ctx, grad_output):
            input, weight = (t.detach().requires_grad_() for t in ctx.saved_tensors)
            with torch.enable_grad():
                output = prelu(input, weight)
            return torch.autograd.grad(output, (input, weight), 2 * grad_output)

    input = integer_values((4, 3, 5), torch.float32, device).requires_grad_()
    weight = torch.tensor([0.25, -0.5, 1.5], device=device).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        output = Twice.apply(input, weight)
    assert output.dtype == (cast_inputs or torch.bfloat16)
    output.sum(dtype=torch.float32).backward()
    plain = prelu_backward(torch.full_like(input, 2.0), input, weight, [True, True])
    assert_both_branches(input, *plain)
    assert torch.equal(input.grad, plain[0]) and torch.equal(weight.grad, plain[1])


# torch.func inside a region; PyTorch's dtypes are float32 under vmap, whose rule for prelu comes first.
TRANSFORMS = {
    "vjp": lambda f: lambda x, w: (vjp(f, x, w)[0], vjp(f, x, w)[1](f(x, w))),
    "jvp": lambda f: lambda x, w: jvp(f, (x, w), (x, w)),
    "jacfwd": lambda f: jacfwd(f, argnums=(0, 1)),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "vmap": lambda f: vmap(f, in_dims=(0, None)),
    "per_sample_gradients": lambda f: vmap(
        grad(lambda x, w: f(x, w).sum(), argnums=(0, 1)), in_dims=(0, None)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_transforms_inside_a_region_have_pytorchs_values(transform, autocast_dtype, device):
    """With slopes that the autocast_dtype dtype can hold: else PyTorch rounds them, and ours does not."""
    input = integer_values((4, 3, 3), torch.float32, device)
    weight = torch.tensor([0.25, -0.5, 1.5], device=device)
    assert_both_branches(input)
    with torch.autocast(device, dtype=autocast_dtype):
        assert_equal_trees(transform(prelu)(input, weight), transform(F.prelu)(input, weight))


def test_vmap_inside_a_region_takes_a_layers_16_bit_output(autocast_dtype, device):
    input = integer_values((4, 3, 3), autocast_dtype, device)
    weight = torch.tensor([0.1, -0.3, 1.7], device=device)
    with torch.autocast(device, dtype=autocast_dtype):
        expected = prelu(input, weight)
        mapped = vmap(prelu, in_dims=(0, None))(input[:, None], weight)
    assert_both_branches(input, expected)
    assert_same_bits(mapped[:, 0], expected)
