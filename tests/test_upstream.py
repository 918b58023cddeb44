"""PyTorch's own test material for PReLU, OpInfo and ModuleInfo, run on this operator.

The test bodies follow PyTorch's test_ops.py, test_ops_gradients.py, test_ops_fwd_gradients.py,
test_modules.py and functorch/test_ops.py, which no wheel ships; the inputs are PyTorch's.
"""

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cases import forward_backward
from reference import assert_grad_weight_within_bound, assert_same_bits, ieee_grad_weight
from torch._subclasses.fake_utils import CrossRefFakeMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vjp, vmap

import torch_ext

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
flag = torch.backends.__allow_nonbracketed_mutation_flag  # the next import clears it for everybody
from torch.testing._internal import composite_compliance
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_utils import noncontiguous_like

pytestmark = pytest.mark.contract

torch.backends.__allow_nonbracketed_mutation_flag = flag

prelu = torch_ext.prelu
OPERATORS = {
    name: getattr(torch.ops.torch_ext, name).default for name in ("prelu", "prelu_backward")
}
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)

(OP,) = (info for info in op_db if info.name == "nn.functional.prelu")
(MODULE,) = (info for info in module_db if info.module_cls is torch.nn.PReLU)


# ---- PyTorch's samples -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seed():
    """PyTorch's generators draw from the global one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _samples(kind, dtype, device):
    """No fewer than torch 2.15 has, and both branches somewhere among them."""
    samples = list(getattr(OP, kind)(device, dtype, requires_grad=True))
    assert len(samples) >= {"sample_inputs": 25, "reference_inputs": 100}[kind]
    values = torch.cat([sample.input.detach().reshape(-1) for sample in samples])
    assert (values > 0).sum() >= 100 and (values < 0).sum() >= 100
    return samples


def _arguments(sample):
    """input and weight, which a sample has in args or in kwargs; both are leaves with gradients."""
    (weight,) = (*sample.args, *sample.kwargs.values())
    return tuple(tensor.detach().requires_grad_() for tensor in (sample.input, weight))


def _variants(dtype, device):
    """input and weight of every sample, also in another place in memory."""
    for sample in _samples("sample_inputs", dtype, device):
        yield _arguments(sample)
        yield _arguments(sample.noncontiguous())


def _differentiable(device, strided=False):
    """The float64 samples, moved away from zero: finite differences do not hold across it."""
    for sample in _samples("sample_inputs", torch.float64, device):
        input, weight = _arguments(sample)
        input = torch.where(input.abs() < 0.05, 1.0, input).detach().requires_grad_()
        yield tuple(map(noncontiguous_like, (input, weight))) if strided else (input, weight)


two_dtypes = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)


# ---- Values and errors -------------------------------------------------------------------------


def _assert_equals_stock(sample):
    """Output and grad_input to the bit; grad_weight by the contract, whose bound stock breaks."""
    assert_same_bits(
        prelu(sample.input, *sample.args, **sample.kwargs),
        F.prelu(sample.input, *sample.args, **sample.kwargs),
    )
    input, weight = _arguments(sample)
    grad_output = torch.randn_like(input)
    output, grad_input, grad_weight = forward_backward(prelu, input, weight, grad_output)
    stock = forward_backward(F.prelu, input, weight, grad_output)
    assert_same_bits(output, stock[0])
    assert_same_bits(grad_input, stock[1])
    _assert_grad_weight(grad_weight, grad_output, input, weight)


def _assert_grad_weight(actual, *arguments):
    arguments = [tensor.detach().resolve_neg() for tensor in arguments]
    expected = ieee_grad_weight(*arguments)
    if expected.isfinite().all() and expected.any():
        assert_grad_weight_within_bound(actual, *arguments)
    else:  # nothing is on the slope's side, or infinities and NaN are
        assert_equal(actual, expected)


@pytest.mark.parametrize("kind", ("sample_inputs", "reference_inputs"))
def test_values_equal_stock(kind, dtype, device):
    assert dtype in OP.supported_dtypes(device)
    for sample in _samples(kind, dtype, device):
        _assert_equals_stock(sample)


VIEWS = {
    "noncontiguous": noncontiguous_like,
    "negated": lambda t: torch._neg_view(-t.detach()).requires_grad_(),  # negates when it is read
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_values_of_views_equal_stock(view, dtype, device):
    for sample in _samples("sample_inputs", dtype, device):
        changed = sample.transform(lambda arg: view(arg) if torch.is_tensor(arg) else arg)
        assert (
            changed.input.is_neg()
            or changed.input.stride() != sample.input.stride()
            or changed.input.dim() == 0
        )
        _assert_equals_stock(changed)


def test_errors_are_upstreams(device):
    errors = list(OP.error_inputs(device))
    assert len(errors) >= 3
    for error in errors:
        sample = error.sample_input
        for function in (F.prelu, prelu):  # stock first: is the material still what it was?
            with pytest.raises(error.error_type, match=error.error_regex):
                function(sample.input, *sample.args, **sample.kwargs)


# ---- Derivatives -------------------------------------------------------------------------------


CHECKS = {
    "first": partial(gradcheck, check_forward_ad=True, check_batched_forward_grad=True),
    "second": partial(gradgradcheck, check_fwd_over_rev=True, gen_non_contig_grad_outputs=True),
}


@pytest.mark.parametrize("strided", (False, True), ids=("contiguous", "noncontiguous"))
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_derivatives_equal_finite_differences(check, strided, device):
    """Reverse and forward mode; second order in reverse over reverse and forward over reverse."""
    for arguments in _differentiable(device, strided):
        assert check(prelu, arguments, check_batched_grad=True, fast_mode=True)


# ---- Composite compliance, fake tensors, copy on write -----------------------------------------


@pytest.mark.parametrize(
    "check", ("with_mode", "all_permutations", "backward_formula", "forward_ad_formula")
)
def test_composite_compliance(check, device):
    check = getattr(composite_compliance, f"check_{check}")
    for sample in _samples("sample_inputs", torch.float32, device):
        check(prelu, (sample.input, *sample.args), sample.kwargs, assert_equal_fn=assert_equal)


def _run(input, weight):
    """Output and gradients, of whichever kind of tensor these are."""
    output = prelu(input, weight)
    return (output.detach(), *torch.autograd.grad(output, (input, weight), torch.ones_like(output)))


@two_dtypes
def test_cross_reference_with_fake_tensors(dtype, device):
    """PyTorch repeats every operator of forward and backward on fake tensors and compares."""
    checked = set()
    for arguments in _variants(dtype, device):
        with CrossRefFakeMode(ignore_op_fn=checked.add):  # None: nothing is ignored
            _run(*arguments)
    assert set(OPERATORS.values()) <= checked


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck_of_every_sample_layout(name, device):
    """Schema, autograd registration, fake kernel and AOT dispatch; one sample for each layout."""
    samples = map(_arguments, _samples("sample_inputs", torch.float32, device))
    layouts = {tuple((t.shape, t.stride()) for t in arguments): arguments for arguments in samples}
    assert len(layouts) >= 10
    for arguments in layouts.values():
        if name == "prelu_backward":
            grad_output = torch.randn_like(arguments[0], requires_grad=True)
            arguments = (grad_output, *arguments, [True, True])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # from inside torch
            results = torch.library.opcheck(OPERATORS[name], arguments)
        assert len(results) >= 4 and set(results.values()) == {"SUCCESS"}


# ---- ModuleInfo --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_the_module_equals_stock(training, dtype, device):
    inputs = MODULE.module_inputs_func(MODULE, device, dtype, True, training)
    assert len(inputs) >= 8
    for given in inputs:
        args, kwargs = given.constructor_input.args, given.constructor_input.kwargs
        ours, stock = (
            cls(*args, **kwargs, device=device, dtype=dtype).train(training)
            for cls in (torch_ext.PReLU, torch.nn.PReLU)
        )
        assert repr(ours) == repr(stock)
        assert_same_bits(ours.weight, stock.weight)
        with torch.no_grad():  # one slope per channel, not the same one for all
            ours.weight.copy_(torch.randn_like(ours.weight))
        stock.load_state_dict(ours.state_dict())
        (input,) = given.forward_input.args
        grad_output = torch.randn_like(input)
        copies = (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)))
        for module in (ours, *copies):
            assert type(module) is torch_ext.PReLU and module.training == training
            assert_same_bits(module.weight, stock.weight)
            _assert_same_run(module, stock, input, grad_output)
        if dtype == torch.float64 and given.reference_fn is not None and ours.weight.numel() == 1:
            expected = given.reference_fn(ours, input)
            torch.testing.assert_close(ours(input), expected)


def _assert_same_run(module, stock, input, grad_output):
    channels_last = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(input.dim(), [])
    for memory_format in (torch.contiguous_format, *channels_last):
        leaf = input.detach().contiguous(memory_format=memory_format).requires_grad_()
        output, expected = module(leaf), stock(leaf)
        assert output.is_contiguous(memory_format=memory_format)
        assert_same_bits(output, expected)
        grad_input, grad_weight = torch.autograd.grad(output, (leaf, module.weight), grad_output)
        (expected,) = torch.autograd.grad(expected, leaf, grad_output)
        assert_same_bits(grad_input, expected)
        _assert_grad_weight(grad_weight, grad_output, leaf, module.weight)


# ---- functorch ---------------------------------------------------------------------------------


@pytest.fixture
def _no_fallback():
    """vmap's fallback, a loop over samples, warns about its performance."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch._C._debug_only_display_vmap_fallback_warnings(True)
        yield
        torch._C._debug_only_display_vmap_fallback_warnings(False)


def _pull(function, input, weight, grad_output):
    output, pullback = vjp(function, input, weight)
    return (output, *pullback(grad_output))


def _push(function, input, weight, tangent, weight_tangent):
    return jvp(function, (input, weight), (tangent, weight_tangent))


def _pull_twice(function, input, weight, grad_output, *cotangents):
    (output, *_), pullback = vjp(partial(_pull, function), input, weight, grad_output)
    return (output, *pullback((grad_output, *cotangents)))


def _push_pull(function, *arguments):
    """Forward over reverse."""
    primals, tangents = jvp(partial(_pull, function), arguments[:3], arguments[3:])
    return (*primals, *tangents)


# What is run, and for each argument whether it is shaped like the input (0) or the weight (1). The
# first result is the output.
TRANSFORMS = {
    "forward": (lambda function, *arguments: (function(*arguments),), (0, 1)),
    "vjp": (_pull, (0, 1, 0)),
    "jvp": (_push, (0, 1, 0, 1)),
    "vjp_vjp": (_pull_twice, (0, 1, 0, 0, 1)),
    "jvp_vjp": (_push_pull, (0, 1, 0, 0, 1, 0)),
}


@pytest.mark.parametrize("transform, shapes", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("dims", ((0, 0), (0, None), (None, 0), (-1, 0), (-1, -1)), ids=str)
@pytest.mark.usefixtures("_no_fallback")
def test_vmap_equals_a_loop(transform, shapes, dims, device):
    """Over a batch in front, at the end, or of one of the two only; the loop runs stock."""
    for pair in _differentiable(device):
        in_dims = tuple(dims[which] for which in shapes)
        arguments = [_batch(pair[which].detach(), dims[which], i) for i, which in enumerate(shapes)]
        mapped = vmap(partial(transform, prelu), in_dims=in_dims)(*arguments)
        looped = [
            transform(
                F.prelu, *(t if d is None else t.select(d, i) for t, d in zip(arguments, in_dims))
            )
            for i in range(3)
        ]
        for ours, others in zip(mapped, zip(*looped), strict=True):
            torch.testing.assert_close(ours, torch.stack(others))
        assert_same_bits(mapped[0], torch.stack([output for output, *_ in looped]))


def _batch(tensor, dim, seed):
    """Three tensors of other values, none near zero where this one is not, stacked at dim."""
    scales = (1.0 + seed, -0.5 - seed, 2.0 + seed)
    if dim is None:
        return tensor * scales[0]
    return torch.stack([tensor * scale for scale in scales], dim)


@pytest.mark.parametrize("transform, shapes", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.usefixtures("_no_fallback")
def test_transforms_equal_stock(transform, shapes, device):
    for pair in _differentiable(device):
        arguments = [_batch(pair[which].detach(), None, i) for i, which in enumerate(shapes)]
        ours, stock = (transform(function, *arguments) for function in (prelu, F.prelu))
        torch.testing.assert_close(ours, stock)
        assert_same_bits(ours[0], stock[0])
