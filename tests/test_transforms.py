"""torch.func: every transform equals stock away from zero, and the contract at zero."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, integer_values, random_values
from reference import assert_both_branches, assert_same_bits, plain
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """vmap's fallback, a loop over samples, warns about its performance."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # from inside torch
        torch._C._debug_only_display_vmap_fallback_warnings(True)
        yield
        torch._C._debug_only_display_vmap_fallback_warnings(False)


def _assert_equal(ours, stock):
    for one, other in zip(
        torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(stock)
    ):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one, other)


# ---- vmap --------------------------------------------------------------------------------------

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


# ---- Derivatives -------------------------------------------------------------------------------


@pytest.fixture(params=(((3, 2, 4), (2,)), ((5, 4), (1,)), ((6,), ()), ((), ())), ids=str)
def arguments(request, device):
    """Values with few bits, so that ours and stock agree to the last one in any order of sums."""
    shape, slopes = request.param
    input = integer_values(shape, torch.float64, device, seed=1)
    weight = integer_values(slopes, torch.float64, device, seed=2) / 4
    return input, weight


def _loss(operator):
    return lambda input, weight: (operator(input, weight) ** 3).sum()


TRANSFORMS = {
    "grad": lambda f: grad(_loss(f), argnums=(0, 1)),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "jacfwd": lambda f: jacfwd(f, argnums=(0, 1)),
    "hessian": lambda f: hessian(_loss(f), argnums=(0, 1)),
    "jacrev_of_jacrev": lambda f: jacrev(jacrev(_loss(f), argnums=(0, 1)), argnums=(0, 1)),
    "jacfwd_of_jacfwd": lambda f: jacfwd(jacfwd(_loss(f), argnums=(0, 1)), argnums=(0, 1)),
    "jacrev_of_jacfwd": lambda f: jacrev(jacfwd(_loss(f), argnums=(0, 1)), argnums=(0, 1)),
    "grad_of_grad": lambda f: grad(
        lambda x, w: (grad(_loss(f), argnums=1)(x, w) ** 2).sum(), argnums=(0, 1)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives_equal_stock_away_from_zero(transform, arguments):
    assert (arguments[0] != 0).all()
    _assert_equal(transform(prelu)(*arguments), transform(F.prelu)(*arguments))


def test_jvp_and_vjp_equal_stock(arguments):
    tangents = tuple(
        integer_values(tensor.shape, torch.float64, tensor.device, seed=3) for tensor in arguments
    )
    _assert_equal(jvp(prelu, arguments, tangents), jvp(F.prelu, arguments, tangents))
    for (ours, our_pullback), (stock, stock_pullback) in (
        (vjp(prelu, *arguments), vjp(F.prelu, *arguments)),
    ):
        _assert_equal(ours, stock)
        _assert_equal(our_pullback(tangents[0]), stock_pullback(tangents[0]))


def test_transforms_compose_with_vmap(device):
    """Compared with plain operations: stock's vmap of a hessian in weight raises."""
    input = integer_values((5, 3, 2, 4), torch.float64, device, seed=1)
    weight = integer_values((2,), torch.float64, device, seed=2) / 4
    weights = integer_values((5, 2), torch.float64, device, seed=3) / 4
    assert_both_branches(input)
    for f in (
        lambda p: vmap(grad(_loss(p), argnums=(0, 1)), in_dims=(0, None))(
            input, weight
        ),  # per-sample gradients
        lambda p: vmap(grad(_loss(p), argnums=(0, 1)))(input, weights),  # an ensemble
        lambda p: vmap(hessian(_loss(p), argnums=1), in_dims=(0, None))(input, weight),
        lambda p: vmap(hessian(_loss(p), argnums=(0, 1)))(input, weights),
        lambda p: vmap(jacfwd(p, argnums=1), in_dims=(0, None))(input, weight),
        lambda p: vmap(lambda x, w, t: jvp(p, (x, w), (t, w)))(input, weights, input),
        lambda p: grad(lambda w: vmap(_loss(p), in_dims=(0, None))(input, w).sum())(weight),
        lambda p: jvp(grad(_loss(p), argnums=1), (input[0], weight), (input[1], weight)),
        lambda p: jacfwd(lambda w: vmap(p, in_dims=(0, None))(input, w))(weight),
    ):
        _assert_equal(f(prelu), f(plain))


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


# ---- At zero -----------------------------------------------------------------------------------


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


def test_functional_call_with_stacked_weights_is_an_ensemble(device):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(finite_slopes((3,), torch.float64))

        def forward(self, input):
            return prelu(input, self.weight)

    nets = [Net().to(device) for _ in range(4)]
    for scale, net in enumerate(nets, 1):
        net.weight.data *= scale
    parameters, _ = torch.func.stack_module_state(nets)
    input = random_values((6, 3, 4), torch.float64, device)
    outputs = vmap(lambda p, x: torch.func.functional_call(nets[0], p, (x,)), in_dims=(0, None))(
        parameters, input
    )
    assert_both_branches(input, outputs)
    assert_same_bits(outputs, torch.stack([net(input) for net in nets]))
