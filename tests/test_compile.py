"""torch.compile sees one whole operator and keeps its results."""

import pytest
import torch
from cases import (
    CASE_BY_NAME,
    case_inputs,
    channels_last,
    finite_slopes,
    forward_backward,
    integer_values,
    random_values,
    significant_strides,
)
from reference import assert_both_branches, assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

# torch's own, raised while it compiles
pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(input, weight):
    """PReLU between two operations that a compiler would like to fuse with it."""
    return prelu(input * 2, weight) + 1


def _assert_equals_eager(compiled, input, weight, seed=1):
    grad_output = random_values(input.shape, input.dtype, input.device, seed=seed)
    actual, expected = (
        forward_backward(compiled, input, weight, grad_output),
        forward_backward(layer, input, weight, grad_output),
    )
    assert_both_branches(input, *expected)
    for one, other in zip(actual, expected):
        assert_same_bits(one, other)
        assert significant_strides(one) == significant_strides(other)


COMPILED = ("image", "image_channels_last", "rows", "shared_0d_weight", "sliced")


@pytest.mark.parametrize("dynamic", (False, True), ids=("static", "dynamic"))
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_has_the_bits_of_eager(name, dynamic, device):
    case = CASE_BY_NAME[name]
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    input = case_inputs(case, torch.float32, device)[0]
    _assert_equals_eager(compiled, input, finite_slopes(case.slopes, torch.float32, device))


def test_a_compiled_step_of_the_mixed_pair_has_the_bits_of_eager(mixed_dtypes, device):
    dtype, weight_dtype = mixed_dtypes
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    weight = finite_slopes((16,), weight_dtype, device)
    _assert_equals_eager(compiled, case_inputs(CASE_BY_NAME["image"], dtype, device)[0], weight)


def test_another_size_does_not_compile_again(device):
    """With symbolic sizes one graph serves all shapes of a rank, channels included."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((3, 6, 5, 7), (4, 9, 8, 5), (2, 33, 3, 4)):
        weight = finite_slopes(shape[1:2], torch.float32, device)
        _assert_equals_eager(compiled, random_values(shape, torch.float32, device), weight)
    assert counter.frame_count == 1


def test_other_batches_and_image_sizes_do_not_compile_again(device):
    """Without being told: the second size makes what changes symbolic, and that is all."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    weight = finite_slopes((6,), torch.float32, device)
    for shape in ((3, 6, 5, 7), (4, 6, 8, 9), (2, 6, 3, 4), (9, 6, 11, 13), (5, 6, 70, 2)):
        _assert_equals_eager(compiled, random_values(shape, torch.float32, device), weight)
    assert counter.frame_count == 2


def test_where_only_compliant_operators_may_be_compiled_ours_are(device):
    with torch._dynamo.config.patch(only_allow_pt2_compliant_ops=True):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        input = random_values((3, 6, 5, 7), torch.float32, device)
        _assert_equals_eager(compiled, input, finite_slopes((6,), torch.float32, device))


@pytest.mark.parametrize(
    "dtypes",
    ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)),
    ids=("float32", "mixed"),
)
def test_inductor_keeps_the_results(dtypes, device):
    """To the bit, for integers: sums that are exact in any order. test_inductor.py has the policies."""
    dtype, weight_dtype = dtypes
    input = channels_last(integer_values((3, 6, 5, 7), dtype, device, seed=2))
    weight = finite_slopes((6,), weight_dtype, device)
    grad_output = integer_values((3, 6, 5, 7), dtype, device, seed=1)
    compiled = torch.compile(lambda *args: prelu(*args), fullgraph=True, backend="inductor")
    actual, expected = (
        forward_backward(compiled, input, weight, grad_output),
        forward_backward(prelu, input, weight, grad_output),
    )
    assert_both_branches(input, *expected)
    for one, other in zip(actual, expected):
        assert_same_bits(one, other)


def test_every_mask_of_the_backward_operator_compiles(device):
    input, grad_output = (
        random_values((3, 4, 5), torch.float32, device, seed=seed) for seed in (1, 2)
    )
    weight = finite_slopes((4,), torch.float32, device)
    compiled = torch.compile(prelu_backward, fullgraph=True, backend="aot_eager")
    for mask in ([True, True], [True, False], [False, True]):
        actual, expected = (f(grad_output, input, weight, mask) for f in (compiled, prelu_backward))
        for one, other in zip(actual, expected):
            assert (one is None) == (other is None)
            if one is not None:
                assert_same_bits(one, other)


def test_a_frozen_weight_compiles(device):
    input = random_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (actual,) = torch.autograd.grad(compiled(input, weight).sum(), input)
    (expected,) = torch.autograd.grad(layer(input, weight).sum(), input)
    assert_same_bits(actual, expected)


def test_errors_while_compiling_are_those_of_eager(device):
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="parameter numbers = 4 and channel size = 3"):
        compiled(torch.ones(2, 3, device=device), torch.ones(4, device=device))


def test_autocast_inside_a_compiled_region(device):
    def step(input, weight):
        with torch.autocast(device, dtype=torch.bfloat16):
            return prelu(input, weight)

    input, weight = (
        random_values((3, 4, 5), torch.float32, device),
        torch.tensor([0.1, -0.3, 1.7, 0.0], device=device),
    )
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    grad_output = random_values((3, 4, 5), torch.bfloat16, device, seed=1)
    for one, other in zip(
        forward_backward(compiled, input, weight, grad_output),
        forward_backward(step, input, weight, grad_output),
    ):
        assert_same_bits(one, other)


def test_functional_transforms_compile(device):
    input, weight = (
        random_values((3, 4, 5), torch.float64, device),
        finite_slopes((4,), torch.float64, device),
    )

    def per_sample_gradients(input, weight):
        return torch.func.vmap(
            torch.func.grad(lambda x, w: prelu(x, w).sum(), argnums=1), in_dims=(0, None)
        )(input[:, None], weight)

    compiled = torch.compile(per_sample_gradients, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(input, weight), per_sample_gradients(input, weight))


def test_compiled_autograd_runs_the_backward(device):
    input = random_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device).requires_grad_()
    expected = torch.autograd.grad(prelu(input, weight).sum(), (input, weight))
    output = prelu(input, weight).sum()
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        output.backward()
    assert_same_bits(input.grad, expected[0])
    assert_same_bits(weight.grad, expected[1])


def _with_a_gradient(operator, input, weight, grad_output, wanted):
    """A loss that holds gradients of the operator: those in the places `wanted`."""
    output = operator(input * 1, weight * 1)
    first = torch.autograd.grad(output, (input, weight), grad_output, create_graph=True)
    return (output * output).sum() + sum((first[place] ** 2).sum() for place in wanted)


def _with_the_backward_operator(mask):
    def loss(_, input, weight, grad_output, wanted):
        gradients = prelu_backward(grad_output * 1, input * 1, weight * 1, mask)
        terms = sum((gradients[place] ** 2).sum() for place in wanted if mask[place])
        return terms + sum((leaf * leaf).sum() for leaf in (input, weight, grad_output))

    return loss


LOSSES = {
    "gradient": _with_a_gradient,
    **{
        str(m): _with_the_backward_operator(m) for m in ([True, True], [True, False], [False, True])
    },
}


@pytest.mark.parametrize("wanted", ((0,), (1,), (0, 1)), ids=("input", "weight", "both"))
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
def test_compiled_autograd_runs_the_second_order(backend, loss, wanted, device):
    """A gradient that does not depend on an operand meets one that does, at each leaf."""

    def gradients(compiled):
        leaves = [
            integer_values((3, 4, 5), torch.float64, device, seed=1).requires_grad_(),
            torch.tensor([0.5, -0.25, 2.0, 1.0], dtype=torch.float64, device=device),
            integer_values((3, 4, 5), torch.float64, device, seed=2).requires_grad_(),
        ]
        leaves[1].requires_grad_()
        value = loss(prelu, *leaves, wanted)
        if compiled:
            compiler = torch.compile(backend=backend, fullgraph=True)
            with torch._dynamo.compiled_autograd._enable(compiler):
                value.backward()
        else:
            value.backward()
        return [leaf.grad for leaf in leaves]

    actual, expected = gradients(compiled=True), gradients(compiled=False)
    assert_both_branches(expected[0])
    for one, other in zip(actual, expected):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert all(grad is not None and grad.norm() > 0 for grad in expected[:2])
