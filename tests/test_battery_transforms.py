"""torch.func: derivatives and their nests are the definition's, at zero too, and PyTorch's elsewhere."""

import warnings

import pytest
import torch
from batteries import battery, each, first_setting, is_native
from cases import Case
from operator_rows import Role
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import leaves_of, present, small_integers, wanted, with_zeros
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from transforms import assert_equal_trees, no_vmap_fallback

pytestmark = pytest.mark.contract

DOUBLE = (torch.float64, torch.float64)


@pytest.fixture(autouse=True)
def _fallback_is_an_error():
    with no_vmap_fallback():
        yield


class Function:
    """A row as torch.func likes it: of its differentiable tensors alone; and sums of cubes as a loss."""

    def __init__(self, operator, arguments, call=None):
        self.operator, self.call = operator, call or operator
        self.fixed = [
            None if a.differentiable else t for a, t in zip(operator.arguments, arguments)
        ]
        self.argnums = tuple(range(sum(tensor is None for tensor in self.fixed)))

    def __call__(self, *tensors):
        given = iter(tensors)
        whole = [next(given) if tensor is None else tensor for tensor in self.fixed]
        results = self.operator.derivable(self.call(*whole, **first_setting(self.operator)))
        return results[0] if len(results) == 1 else tuple(results)

    def loss(self, *tensors):
        results = self(*tensors)
        results = (results,) if isinstance(results, torch.Tensor) else results
        return sum((result**3).sum() for result in results)

    def differentiable(self, arguments):
        return [tensor for tensor, fixed in zip(arguments, self.fixed) if fixed is None]


def _threes(tree):
    return torch.utils._pytree.tree_map(lambda t: torch.full_like(t, 3.0), tree)


def _linearized(f):
    """The output and, for some tangents, the linear function's result."""

    def run(*tensors):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.fx's, about constants that linearize folds
            output, push = linearize(f, *tensors)
        return output, push(*_threes(tensors))

    return run


def _pulled(f):
    def run(*tensors):
        output, pullback = vjp(f, *tensors)
        return output, pullback(_threes(output))

    return run


def _pushed(f):
    return lambda *tensors: jvp(f, tensors, _threes(tensors))


TRANSFORMS = {
    "grad": lambda f: grad(f.loss, f.argnums),
    "vjp": _pulled,
    "jvp": _pushed,
    "linearize": _linearized,
    "jacrev": lambda f: jacrev(f, f.argnums),
    "jacrev_in_chunks": lambda f: jacrev(f, f.argnums, chunk_size=2),
    "jacfwd": lambda f: jacfwd(f, f.argnums),
    "hessian": lambda f: hessian(f.loss, f.argnums),
    "jacrev_of_jacrev": lambda f: jacrev(jacrev(f.loss, f.argnums), f.argnums),
    "jacfwd_of_jacfwd": lambda f: jacfwd(jacfwd(f.loss, f.argnums), f.argnums),
    "jacrev_of_jacfwd": lambda f: jacrev(jacfwd(f.loss, f.argnums), f.argnums),
    "grad_of_grad": lambda f: grad(
        lambda *tensors: (grad(f.loss, f.argnums[-1])(*tensors) ** 2).sum(), f.argnums
    ),
    "jvp_of_grad": lambda f: _pushed(grad(f.loss, f.argnums)),
    "vjp_of_jvp": lambda f: _pulled(lambda *tensors: jvp(f, tensors, _threes(tensors))[1]),
}


def _cases(operator):
    shapes = (((3, 2, 4), (2,)), ((5, 4), (1,)), ((6,), ()), ((), ()))
    cases = {str(shapes): Case("transforms", *shapes) for shapes in shapes}
    return {name: case for name, case in cases.items() if operator.takes(case)}


@battery(case=_cases, transform=each(TRANSFORMS))
def test_derivatives_are_those_of_the_definition(operator, case, transform, device):
    """The slope's side at zero, where PyTorch takes the other in some; elsewhere PyTorch's own."""
    arguments = operator.make(case, DOUBLE, device, small_integers, dyadic=True)
    tensors = Function(operator, arguments).differentiable(arguments)
    assert (arguments[operator.place("input")] != 0).all()
    actual = transform(Function(operator, arguments))(*tensors)
    calls = [operator.define]
    if operator.pytorch is not None and operator.exact and operator.data == ["input"]:
        calls.append(operator.as_pytorch)
    for call in calls:
        expected = transform(Function(operator, arguments, call))(*tensors)
        _assert_trees(operator, actual, expected)
    with_zeros(operator, arguments)
    assert (arguments[operator.place("input")] == 0).any()
    tensors = Function(operator, arguments).differentiable(arguments)
    actual = transform(Function(operator, arguments))(*tensors)
    expected = transform(Function(operator, arguments, operator.define))(*tensors)
    _assert_trees(operator, actual, expected)


def _assert_trees(operator, actual, expected):
    if operator.exact:
        assert_equal_trees(actual, expected)
    else:
        leaves = torch.utils._pytree.tree_leaves
        operator.assert_derivatives(leaves(actual), leaves(expected))


@battery(case=_cases, derivative=each(("jacobian", "hessian")))
def test_vectorized_derivatives_of_autograd_are_those_of_the_definition(
    operator, case, derivative, device
):
    """They batch gradients by torch's older vmap, which has rules of its own."""
    arguments = operator.make(case, DOUBLE, device, small_integers, dyadic=True)
    differentiate = getattr(torch.autograd.functional, derivative)

    def of(call, **options):
        function = Function(operator, arguments, call)
        function_or_loss = function if derivative == "jacobian" else function.loss
        tensors = tuple(function.differentiable(arguments))
        return differentiate(function_or_loss, tensors, **options)

    _assert_trees(operator, of(operator, vectorize=True), of(operator.define, vectorize=True))
    _assert_trees(operator, of(operator, vectorize=True), of(operator))


@battery(case=_cases)
def test_a_batch_of_gradients_goes_through_one_backward(operator, case, device):
    arguments = operator.make(case, DOUBLE, device, small_integers, dyadic=True)
    leaves = leaves_of(operator, arguments)
    results = operator.derivable(operator(*leaves, **first_setting(operator)))
    pairs = [torch.stack([torch.ones_like(r), 2 - r.detach()]) for r in results]
    batched = torch.autograd.grad(
        results, wanted(leaves), pairs, is_grads_batched=True, retain_graph=True
    )
    for i in range(2):
        grads = [pair[i] for pair in pairs]
        single = torch.autograd.grad(results, wanted(leaves), grads, retain_graph=True)
        for of_all, one in zip(batched, single, strict=True):
            assert torch.equal(of_all[i], one)


# ---- Nests with vmap ---------------------------------------------------------------------------

# Of data with a batch in front, and parameters for all samples (`shared`) or for each.
NESTS = {
    "per_sample_gradients": lambda f, dims: vmap(grad(f.loss, f.argnums), dims),
    "in_chunks": lambda f, dims: vmap(grad(f.loss, f.argnums), dims, chunk_size=2),
    "per_sample_hessians": lambda f, dims: vmap(hessian(f.loss, f.argnums), dims),
    "vmap_jacfwd": lambda f, dims: vmap(jacfwd(f, f.argnums), dims),
    "vmap_jacrev": lambda f, dims: vmap(jacrev(f, f.argnums), dims),
    "vmap_jvp": lambda f, dims: vmap(_pushed(f), dims),
    "vmap_vjp": lambda f, dims: vmap(_pulled(f), dims),
    "grad_vmap": lambda f, dims: grad(lambda *t: vmap(f.loss, dims)(*t).sum(), f.argnums),
    "jvp_vmap_grad": lambda f, dims: _pushed(vmap(grad(f.loss, f.argnums), dims)),
    "jacfwd_vmap": lambda f, dims: jacfwd(vmap(f, dims), f.argnums[-1]),
    "jacrev_vmap_grad": lambda f, dims: jacrev(vmap(grad(f.loss, f.argnums[-1]), dims), f.argnums),
}


@battery(
    nest=each(NESTS),
    shared=each({"shared": True, "ensemble": False}),
    zeros=each({"away_from_zero": False, "at_zero": True}),
)
def test_transforms_compose_with_vmap(operator, nest, shared, zeros, device):
    """Compared with plain operations: PyTorch's vmap of a hessian in the slopes raises."""
    case = Case("nests", (3, 2, 2), (2,))
    samples = [
        operator.make(case, DOUBLE, device, small_integers, seed=10 * i, dyadic=True)
        for i in range(3)
    ]
    if zeros:
        samples = [with_zeros(operator, sample) for sample in samples]
    used = [a for a in operator.arguments if a.differentiable]
    dims = tuple(0 if a.role is Role.DATA or not shared else None for a in used)
    columns = list(zip(*(Function(operator, s).differentiable(s) for s in samples)))
    scales = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64, device=device)
    tensors = []
    for argument, dim, column in zip(used, dims, columns):
        whole = column[0] if dim is None else torch.stack(column)
        if dim == 0 and argument.role is not Role.DATA:  # other parameters for each sample
            factors = scales if argument.signed else scales.abs()
            whole = whole * factors.view([-1] + [1] * (whole.dim() - 1))
        tensors.append(whole)
    inputs = torch.stack([sample[operator.place("input")] for sample in samples])
    assert_both_branches(inputs)
    assert (inputs == 0).any() == zeros
    functions = (Function(operator, samples[0], call) for call in (None, operator.define))
    actual, expected = (nest(function, dims)(*tensors) for function in functions)
    _assert_trees(operator, actual, expected)


@battery()
def test_two_vmaps_of_a_gradient(operator, device):
    """Samples inside, parameters outside."""
    samples = [
        operator.make(
            Case("two", (3, 2, 2), (2,)), DOUBLE, device, small_integers, seed=s, dyadic=True
        )
        for s in (0, 10, 20)
    ]
    used = [a for a in operator.arguments if a.differentiable]
    inner = tuple(0 if a.role is Role.DATA else None for a in used)
    outer = tuple(None if a.role is Role.DATA else 0 for a in used)
    columns = zip(*(Function(operator, sample).differentiable(sample) for sample in samples))
    tensors = [torch.stack(column) for column in columns]

    def nested(call):
        function = Function(operator, samples[0], call)
        return vmap(vmap(grad(function.loss, function.argnums), inner), outer)(*tensors)

    _assert_trees(operator, nested(None), nested(operator.define))


# ---- Other dtypes, functionalize ---------------------------------------------------------------


def mixed_dtypes_of(operator):
    return {str(dtypes[0]): dtypes for dtypes in operator.dtypes if dtypes[0] != dtypes[1]}


@battery(dtypes=mixed_dtypes_of, slopes=each(((3,), (1,), ())))
def test_transforms_of_mixed_dtypes_keep_them_and_the_values(operator, dtypes, slopes, device):
    """PyTorch's own promotion would round a 0-D float32 slope to 16 bits."""
    arguments = operator.make(Case("mixed", (10, 3, 4), slopes), dtypes, device)
    function = Function(operator, arguments)
    tensors = function.differentiable(arguments)
    expected = function(*tensors)
    output, tangent = jvp(function, tuple(tensors), tuple(torch.zeros_like(t) for t in tensors))
    pulled, pullback = vjp(function, *tensors)
    leaves = torch.utils._pytree.tree_leaves
    for result, *others in zip(
        operator.derivable(operator.results), *map(leaves, (expected, output, pulled)), strict=True
    ):
        if result.role is Role.DATA and operator.graph_keeps_bits:
            assert_same_bits(others[1], others[0])
            assert_same_bits(others[2], others[0])
        assert len({other.dtype for other in others}) == 1
    assert all(t.dtype == r.dtype for t, r in zip(leaves(tangent), leaves(expected), strict=True))
    ones = torch.utils._pytree.tree_map(torch.ones_like, expected)
    gradients = pullback(ones)
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors]
    if operator.backward is not None:
        backward = present(operator.backward(*leaves(ones), *arguments))
        for one, other in zip(gradients, backward, strict=True):
            torch.testing.assert_close(one, other)
            assert one.dim() < 2 or not operator.graph_keeps_bits or torch.equal(one, other)


@battery(is_native)
def test_functionalize_keeps_the_operator_and_removes_mutations_around_it(operator, device):
    arguments = operator.make(Case("mutations", (4, 3, 5), (3,)), DOUBLE, device, dyadic=True)
    function = Function(operator, arguments)
    at = operator.place("input")
    index = sum(a.differentiable for a in operator.arguments[:at])

    def between_mutations(*tensors):
        hidden = tensors[index].clone().mul_(2)
        results = function(*tensors[:index], hidden, *tensors[index + 1 :])
        first = results if isinstance(results, torch.Tensor) else results[0]
        return first.add_(1).sum() + sum(r.sum() for r in results)

    tensors = function.differentiable(arguments)
    functional = functionalize(between_mutations)
    assert_both_branches(arguments[at])
    assert_same_bits(functional(*tensors), between_mutations(*tensors))
    graph = make_fx(functional)(*tensors).graph
    called = [node.target for node in graph.nodes]
    assert [str(target) for target in called].count(operator.schema_name) == 1
    assert not {torch.ops.aten.mul_.Tensor, torch.ops.aten.add_.Tensor} & set(called)
    gradients = grad(functional, function.argnums)(*tensors)
    assert_equal_trees(gradients, grad(between_mutations, function.argnums)(*tensors))
