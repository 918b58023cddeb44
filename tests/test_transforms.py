"""torch.func: derivatives and their nests equal stock away from zero, and the contract at zero."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, integer_values, random_values
from reference import assert_both_branches, assert_same_bits, plain
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from transforms import assert_equal_trees, no_vmap_fallback

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.fixture(autouse=True)
def _fallback_is_an_error():
    with no_vmap_fallback():
        yield


# ---- One sample --------------------------------------------------------------------------------


@pytest.fixture(params=(((3, 2, 4), (2,)), ((5, 4), (1,)), ((6,), ()), ((), ())), ids=str)
def arguments(request, device):
    """Values with few bits, so that ours and stock agree to the last one in any order of sums."""
    shape, slopes = request.param
    input = integer_values(shape, torch.float64, device, seed=1)
    weight = integer_values(slopes, torch.float64, device, seed=2) / 4
    return input, weight


def _with_zeros(input):
    """A third of the elements are zeros, of both signs."""
    flat = input.clone().reshape(-1)
    flat[::6], flat[3::6] = 0.0, -0.0
    return flat.reshape(input.shape)


def _loss(operator):
    return lambda input, weight: (operator(input, weight) ** 3).sum()


def _linearized(function):
    """The output and, for some tangents, the linear function's result."""

    def run(input, weight):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.fx's, about constants that linearize folds
            output, push = linearize(function, input, weight)
        return output, push(torch.full_like(input, 3.0), torch.full_like(weight, -2.0))

    return run


TRANSFORMS = {
    "grad": lambda f: grad(_loss(f), argnums=(0, 1)),
    "vjp": lambda f: lambda x, w: vjp(f, x, w)[1](torch.full_like(x, 3.0)),
    "jvp": lambda f: lambda x, w: jvp(f, (x, w), (torch.full_like(x, 3.0), w)),
    "linearize": _linearized,
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "jacrev_in_chunks": lambda f: jacrev(f, argnums=(0, 1), chunk_size=2),
    "jacfwd": lambda f: jacfwd(f, argnums=(0, 1)),
    "hessian": lambda f: hessian(_loss(f), argnums=(0, 1)),
    "jacrev_of_jacrev": lambda f: jacrev(jacrev(_loss(f), argnums=(0, 1)), argnums=(0, 1)),
    "jacfwd_of_jacfwd": lambda f: jacfwd(jacfwd(_loss(f), argnums=(0, 1)), argnums=(0, 1)),
    "jacrev_of_jacfwd": lambda f: jacrev(jacfwd(_loss(f), argnums=(0, 1)), argnums=(0, 1)),
    "grad_of_grad": lambda f: grad(
        lambda x, w: (grad(_loss(f), argnums=1)(x, w) ** 2).sum(), argnums=(0, 1)
    ),
    "jvp_of_grad": lambda f: (
        lambda x, w: jvp(grad(_loss(f), argnums=(0, 1)), (x, w), (torch.full_like(x, 3.0), w))
    ),
    "vjp_of_jvp": lambda f: (
        lambda x, w: vjp(lambda x, w: jvp(f, (x, w), (torch.full_like(x, 3.0), w))[1], x, w)[1](
            torch.full_like(x, 2.0)
        )
    ),
}

with_all_transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@with_all_transforms
def test_derivatives_equal_stock_away_from_zero(transform, arguments):
    assert (arguments[0] != 0).all()
    assert_equal_trees(transform(prelu)(*arguments), transform(F.prelu)(*arguments))


@with_all_transforms
def test_derivatives_at_zero_are_those_of_the_definition(transform, arguments):
    """The slope's side in every derivative, where stock takes the other in some."""
    input, weight = _with_zeros(arguments[0]), arguments[1]
    zeros = input[input == 0]
    assert zeros.numel() and (zeros.signbit().any() or input.numel() < 4)
    assert_equal_trees(transform(prelu)(input, weight), transform(plain)(input, weight))


@pytest.mark.parametrize("derivative", ("jacobian", "hessian"))
def test_vectorized_derivatives_of_autograd_equal_stock(derivative, arguments):
    """They batch gradients by torch's older vmap, which has rules of its own."""
    differentiate = getattr(torch.autograd.functional, derivative)
    functions = [
        operator if derivative == "jacobian" else _loss(operator) for operator in (prelu, F.prelu)
    ]
    ours, stock = (differentiate(each, arguments, vectorize=True) for each in functions)
    assert_equal_trees(ours, stock)
    assert_equal_trees(ours, differentiate(functions[0], arguments))


def test_a_batch_of_gradients_goes_through_one_backward(arguments):
    arguments = [argument.requires_grad_() for argument in arguments]
    output = prelu(*arguments)
    cotangents = torch.stack([torch.ones_like(output), 2 - output.detach()])
    batched = torch.autograd.grad(
        output, arguments, cotangents, is_grads_batched=True, retain_graph=True
    )
    for i, cotangent in enumerate(cotangents):
        single = torch.autograd.grad(output, arguments, cotangent, retain_graph=True)
        for of_all, one in zip(batched, single, strict=True):
            assert_same_bits(of_all[i], one)


def test_jvp_and_vjp_equal_stock(arguments):
    tangents = tuple(
        integer_values(tensor.shape, torch.float64, tensor.device, seed=3) for tensor in arguments
    )
    assert_equal_trees(jvp(prelu, arguments, tangents), jvp(F.prelu, arguments, tangents))
    ours, our_pullback = vjp(prelu, *arguments)
    stock, stock_pullback = vjp(F.prelu, *arguments)
    assert_equal_trees(ours, stock)
    assert_equal_trees(our_pullback(tangents[0]), stock_pullback(tangents[0]))


# ---- Nests with vmap ---------------------------------------------------------------------------

# Of (5, 3, 2, 4) inputs x, (2) slopes w for all samples, and (5, 2) slopes ws, a vector each.
NESTS = {
    "per_sample_gradients": lambda f, x, w, ws: vmap(
        grad(_loss(f), argnums=(0, 1)), in_dims=(0, None)
    )(x, w),
    "per_sample_gradients_in_chunks": lambda f, x, w, ws: vmap(
        grad(_loss(f), argnums=(0, 1)), in_dims=(0, None), chunk_size=2
    )(x, w),
    "ensemble_gradients": lambda f, x, w, ws: vmap(grad(_loss(f), argnums=(0, 1)))(x, ws),
    "per_sample_hessians": lambda f, x, w, ws: vmap(
        hessian(_loss(f), argnums=1), in_dims=(0, None)
    )(x, w),
    "ensemble_hessians": lambda f, x, w, ws: vmap(hessian(_loss(f), argnums=(0, 1)))(x, ws),
    "vmap_jacfwd": lambda f, x, w, ws: vmap(jacfwd(f, argnums=1), in_dims=(0, None))(x, w),
    "vmap_jacrev": lambda f, x, w, ws: vmap(jacrev(f, argnums=(0, 1)))(x, ws),
    "vmap_jvp": lambda f, x, w, ws: vmap(lambda a, b: jvp(f, (a, b), (a, b)))(x, ws),
    "vmap_vjp": lambda f, x, w, ws: vmap(lambda a, b: vjp(f, a, b)[1](a))(x, ws),
    "grad_vmap": lambda f, x, w, ws: grad(lambda w: vmap(_loss(f), in_dims=(0, None))(x, w).sum())(
        w
    ),
    "jvp_grad": lambda f, x, w, ws: jvp(grad(_loss(f), argnums=1), (x[0], w), (x[1], w)),
    "jvp_vmap_grad": lambda f, x, w, ws: jvp(vmap(grad(_loss(f), argnums=1)), (x, ws), (x, ws)),
    "jacfwd_vmap": lambda f, x, w, ws: jacfwd(lambda w: vmap(f, in_dims=(0, None))(x, w))(w),
    "jacrev_vmap_grad": lambda f, x, w, ws: jacrev(
        lambda w: vmap(grad(_loss(f), argnums=1), in_dims=(0, None))(x, w)
    )(w),
    "vmap_vmap_grad": lambda f, x, w, ws: vmap(
        vmap(grad(_loss(f), argnums=(0, 1)), in_dims=(0, None)), in_dims=(None, 0)
    )(x, ws),
}


@pytest.mark.parametrize("at_zero", (False, True), ids=("away_from_zero", "at_zero"))
@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_transforms_compose_with_vmap(nest, at_zero, device):
    """Compared with plain operations: stock's vmap of a hessian in weight raises."""
    input = integer_values((5, 3, 2, 4), torch.float64, device, seed=1)
    weight = integer_values((2,), torch.float64, device, seed=2) / 4
    weights = integer_values((5, 2), torch.float64, device, seed=3) / 4
    assert_both_branches(input)
    input = _with_zeros(input) if at_zero else input
    assert (input == 0).any() == at_zero
    assert_equal_trees(nest(prelu, input, weight, weights), nest(plain, input, weight, weights))


def test_functional_call_with_stacked_weights_is_an_ensemble(device):
    nets = [torch_ext.PReLU(3, dtype=torch.float64, device=device) for _ in range(4)]
    for scale, net in enumerate(nets, 1):
        net.weight.data = scale * finite_slopes((3,), torch.float64, device)
    parameters, _ = torch.func.stack_module_state(nets)
    input = random_values((6, 3, 4), torch.float64, device)
    outputs = vmap(lambda p, x: torch.func.functional_call(nets[0], p, (x,)), in_dims=(0, None))(
        parameters, input
    )
    assert_both_branches(input, outputs)
    assert_same_bits(outputs, torch.stack([net(input) for net in nets]))


# ---- Other dtypes, worked values, functionalize ------------------------------------------------


def test_transforms_of_the_mixed_pair_keep_its_dtypes(mixed_dtypes, device):
    """And its values: PyTorch's own promotion would round a 0-D float32 slope to 16 bits."""
    dtype, weight_dtype = mixed_dtypes
    input = random_values((40, 3), dtype, device, seed=1)
    for slopes in ((3,), (1,), ()):
        weight = torch.tensor([0.1, -0.3, 1.7], dtype=weight_dtype, device=device)
        weight = weight[: slopes[0]] if slopes else weight[0]
        expected = prelu(input, weight)
        expected_grads = prelu_backward(torch.ones_like(input), input, weight, [True, True])
        output, pullback = vjp(prelu, input, weight)
        assert_same_bits(output, expected)
        grad_input, grad_weight = pullback(torch.ones_like(input))
        assert_same_bits(grad_input, expected_grads[0])
        assert grad_weight.dtype == weight_dtype
        torch.testing.assert_close(grad_weight, expected_grads[1])
        output, tangent = jvp(
            prelu, (input, weight), (torch.ones_like(input), torch.zeros_like(weight))
        )
        assert_same_bits(output, expected)
        assert_same_bits(tangent, expected_grads[0])
        assert_same_bits(vmap(prelu, in_dims=(0, None))(input[:, None], weight), expected[:, None])


@pytest.mark.parametrize("jacobian", (jacrev, jacfwd))
def test_both_modes_use_the_slope_at_zero(jacobian, device):
    """Stock's two modes disagree here."""
    input = torch.tensor([[0.0, -0.0, 2.0, -2.0]], dtype=torch.float64, device=device)
    weight = torch.tensor([0.25], dtype=torch.float64, device=device)
    by_input, by_weight = jacobian(prelu, argnums=(0, 1))(input, weight)
    assert by_input[0, :, 0].diagonal().tolist() == [0.25, 0.25, 1.0, 0.25]
    assert by_weight[0, :, 0].tolist() == [0.0, 0.0, 0.0, -2.0]


@pytest.mark.parametrize(
    "second", (hessian, lambda f, argnums: jacrev(jacrev(f, argnums), argnums)), ids=("fwd", "rev")
)
def test_second_derivatives_use_the_slope_at_zero(second, device):
    """y = w*x there, so d²y/dxdw = 1 on the slope's side, zero included."""
    for value, mixed in ((0.0, 1.0), (-0.0, 1.0), (-2.0, 1.0), (2.0, 0.0)):
        input = torch.tensor(value, dtype=torch.float64, device=device)
        weight = torch.tensor(0.25, dtype=torch.float64, device=device)
        (xx, xw), (wx, ww) = second(prelu, (0, 1))(input, weight)
        assert [t.item() for t in (xx, xw, wx, ww)] == [0.0, mixed, mixed, 0.0]


def test_functionalize_keeps_the_operator_and_removes_mutations_around_it(device):
    def between_mutations(input, weight):
        hidden = input.clone().mul_(2)
        output = prelu(hidden, weight)
        output.add_(1)
        return prelu(output, weight)

    input = random_values((4, 3, 5), torch.float64, device)
    weight = finite_slopes((3,), torch.float64, device)
    functional = functionalize(between_mutations)
    assert_both_branches(input)
    assert_same_bits(functional(input, weight), between_mutations(input, weight))
    called = [node.target for node in make_fx(functional)(input, weight).graph.nodes]
    assert called.count(prelu.default) == 2
    assert not {torch.ops.aten.mul_.Tensor, torch.ops.aten.add_.Tensor} & set(called)
    gradients = grad(lambda x, w: functional(x, w).sum(), argnums=(0, 1))(input, weight)
    expected = grad(lambda x, w: between_mutations(x, w).sum(), argnums=(0, 1))(input, weight)
    assert_equal_trees(gradients, expected)
