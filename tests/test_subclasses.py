"""Tensor subclasses, duck types and modes see the operator as they see PyTorch's own."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, integer_values, random_values
from recorder import Recorder
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

# Every way to call it, as functions of (input, weight).
CALLS = {
    "function": torch_ext.prelu,
    "operator": prelu,
    "overload": prelu.default,
    "module": lambda input, weight: _module(weight)(input),
}


def _module(weight):
    module = torch_ext.PReLU(weight.numel())
    del module.weight
    module.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    return module


@pytest.fixture(params=CALLS.values(), ids=CALLS)
def call(request):
    return request.param


# ---- __torch_function__ ------------------------------------------------------------------------


class Named(torch.Tensor):
    """A subclass that notes which functions it was given to."""

    seen: ClassVar = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


class Duck:
    """No tensor at all."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, types, args, kwargs or {}


def test_a_subclass_keeps_its_type_and_sees_the_call(call, device):
    values, weight = random_values((4, 3), torch.float32, device), torch.ones(3, device=device)
    Named.seen.clear()
    output = call(values.as_subclass(Named), weight)
    assert type(output) is Named is type(F.prelu(values.as_subclass(Named), weight))
    assert any(function in (prelu, prelu.default) for function in Named.seen)
    assert_both_branches(values, output.as_subclass(torch.Tensor))
    assert_same_bits(output.as_subclass(torch.Tensor), prelu(values, weight))
    assert type(torch_ext.prelu(values, weight.as_subclass(Named))) is Named


def test_gradients_of_a_subclass(device):
    values, weight = random_values((4, 3), torch.float32, device), torch.ones(3, device=device)
    input = values.clone().as_subclass(Named).requires_grad_()
    torch_ext.prelu(input, weight).sum().backward()
    stock = values.clone().as_subclass(Named).requires_grad_()
    F.prelu(stock, weight).sum().backward()
    assert type(input.grad) is type(stock.grad)
    assert_same_bits(*(t.grad.as_subclass(torch.Tensor) for t in (input, stock)))


def test_a_duck_type_is_asked_in_either_place(device):
    """As torch.nn.functional.prelu asks it; what it is told to call is the operator."""
    tensor = torch.ones(3, device=device)
    for function in (torch_ext.prelu, F.prelu):
        for arguments in ((Duck(), tensor), (tensor, Duck()), (Duck(), Duck())):
            called, types, args, kwargs = function(*arguments)
            assert called is (prelu if function is torch_ext.prelu else torch.prelu)
            assert tuple(types) == (Duck,) and args == arguments and kwargs == {}


def test_plain_tensors_and_parameters_stay_what_they_are(call, device):
    input = nn.Parameter(random_values((4, 3), torch.float32, device))
    assert type(call(input, nn.Parameter(torch.ones(3, device=device)))) is torch.Tensor
    with torch._C.DisableTorchFunctionSubclass():
        assert type(call(input.detach().as_subclass(Named), torch.ones(3))) is torch.Tensor


def test_a_function_mode_sees_every_way_to_call_it(call, device):
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    input, weight = random_values((4, 3), torch.float32, device), torch.ones(3, device=device)
    weight = nn.Parameter(weight)
    with Watch():
        output = call(input, weight)
    assert len([function for function in seen if function in (prelu, prelu.default)]) == 1
    assert_same_bits(output, prelu(input, weight))


def test_a_function_mode_may_put_another_function_in_its_place(call, device):
    class Stock(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            function = F.relu6 if function in (prelu, prelu.default) else function
            return function(*(args[:1] if function is F.relu6 else args), **(kwargs or {}))

    input = random_values((4, 3), torch.float32, device)
    with Stock():
        output = call(input, torch.ones(3, device=device))
    assert_same_bits(output, F.relu6(input))


# ---- __torch_dispatch__ ------------------------------------------------------------------------


class Wrapper(torch.Tensor):
    """Holds another tensor and notes which operators run on it, below autograd."""

    seen: ClassVar = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        args, kwargs = tree_map(
            lambda value: value.inner if isinstance(value, Wrapper) else value,
            (args, kwargs or {}),
        )
        return tree_map(
            lambda value: Wrapper(value) if isinstance(value, torch.Tensor) else value,
            function(*args, **kwargs),
        )


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("wrapped", ((True, True), (True, False), (False, True)), ids=str)
def test_a_wrapper_sees_both_operators_and_computes_the_same(wrapped, call, dtype, device):
    values = random_values((4, 3, 5), dtype, device)
    slopes = finite_slopes((3,), torch.float32, device)
    expected = prelu(values, slopes), *prelu_backward(values, values, slopes, [True, True])
    input = (Wrapper(values) if wrapped[0] else values.clone()).requires_grad_()
    weight = Wrapper(slopes) if wrapped[1] else slopes.clone()
    weight = nn.Parameter(weight)  # as a module would hold it, so that all calls get the same one
    Wrapper.seen.clear()
    output = call(input, weight)
    assert isinstance(output, Wrapper) and output.requires_grad
    output.backward(Wrapper(values))
    assert Wrapper.seen.count(prelu.default) == Wrapper.seen.count(prelu_backward.default) == 1
    assert_both_branches(values, *expected)
    for result, expectation in zip((output, input.grad, weight.grad), expected):
        assert isinstance(result, Wrapper)
        assert_same_bits(result.inner, expectation)


def test_the_second_order_of_a_wrapper(device):
    values = integer_values((4, 3, 5), torch.float64, device)
    slopes = finite_slopes((3,), torch.float64, device)

    def second(input, weight):
        first = torch.autograd.grad(prelu(input, weight).sum(), (input, weight), create_graph=True)
        return torch.autograd.grad(first[0].square().sum() + first[1].sum(), (input, weight))

    plain = second(values.clone().requires_grad_(), slopes.clone().requires_grad_())
    wrapped = second(Wrapper(values).requires_grad_(), Wrapper(slopes).requires_grad_())
    assert_both_branches(values, *plain)
    for one, other in zip(wrapped, plain):
        assert_same_bits(one.inner, other)


def test_a_swapped_model_runs_on_wrapped_parameters(device):
    """As quantization and sharding libraries do: subclasses take the place of Parameters."""
    model = nn.Sequential(nn.Linear(6, 4), nn.PReLU(4)).to(device)
    input = random_values((5, 6), torch.float32, device)
    expected = model(input).detach()
    torch_ext.replace_prelu(model)
    for module in model:
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(Wrapper(parameter.detach())))
    Wrapper.seen.clear()
    output = model(input)
    assert prelu.default in Wrapper.seen
    assert_same_bits(output.inner, expected)


def test_a_dispatch_mode_sees_forward_and_backward(call, device):
    input = random_values((4, 3), torch.float32, device).requires_grad_()
    weight = nn.Parameter(torch.ones(3, device=device))
    with Recorder() as recorder:
        call(input, weight).sum().backward()
    seen = recorder.seen
    assert seen.count(prelu.default) == seen.count(prelu_backward.default) == 1
    assert not any(
        "prelu" in str(function) for function in seen if "torch_ext" not in str(function)
    )
