"""torch.compile: errors, autocast, transforms, and compiled autograd. test_battery_compile.py has the rest."""

import pytest
import torch
from cases import (
    finite_slopes,
    forward_backward,
    integer_values,
    random_values,
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


WANTED = {"input": (0,), "weight": (1,), "both": (0, 1)}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("backend", "wanted"),
    [pytest.param("eager", each, id=f"eager-{name}") for name, each in WANTED.items()]
    + [pytest.param("aot_eager", WANTED["both"], id="aot_eager")],
)
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
