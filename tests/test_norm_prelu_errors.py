"""Errors of norm + PReLU: PyTorch's, in its words where it has words."""

import pytest
import torch
import torch.nn.functional as F
from norm_cases import CASES, FUNCTIONS, PYTORCH_NORMS, problem_of

import torch_ext

pytestmark = pytest.mark.contract

x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
slope = torch.full((3,), 0.25)
zeros, ones = torch.zeros, torch.ones
statistics = (zeros(3), ones(3))


def raised(function, *args, **kwargs):
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    return type(caught.value), str(caught.value).splitlines()[0]


# What both take after the input (and ours after the slope), and keywords.
BATCH_CASES = {
    "one_value": (ones(1, 3, 1, 1), (None, None), {"training": True}),
    "one_row": (ones(1, 3), (None, None), {"training": True}),
    "no_statistics": (x, (None, None), {}),
    "mean_size": (x, (zeros(4), ones(3)), {"training": True}),
    "var_size": (x, (zeros(3), ones(4)), {"training": True}),
    "weight_size": (x, (*statistics, ones(4)), {}),
    "bias_size": (x, (*statistics, None, ones(4)), {}),
    "integers": (x.long(), statistics, {}),
}
INSTANCE_CASES = {
    "one_element": (ones(2, 3, 1, 1), (), {}),
    "rows": (ones(2, 3), (), {}),
    "no_statistics": (x, (), {"use_input_stats": False}),
    "integers": (x.long(), (), {}),
}


@pytest.mark.parametrize("case", BATCH_CASES.values(), ids=BATCH_CASES)
def test_batch_norm_raises_what_pytorch_raises(case):
    input, args, kwargs = case
    expected = raised(F.batch_norm, input, *args, **kwargs)
    assert raised(torch_ext.batch_norm_prelu, input, slope, *args, **kwargs) == expected


@pytest.mark.parametrize("case", INSTANCE_CASES.values(), ids=INSTANCE_CASES)
def test_instance_norm_raises_what_pytorch_raises(case):
    input, args, kwargs = case
    expected = raised(F.instance_norm, input, *args, **kwargs)
    assert raised(torch_ext.instance_norm_prelu, input, slope, *args, **kwargs) == expected


@pytest.mark.parametrize(
    ("eps", "training", "text"),
    (
        (0.0, True, "batch_norm eps must be positive during training, but got 0"),
        (-1.0, True, "batch_norm eps must be positive during training, but got -1"),
        (-1.0, False, "batch_norm eps must be non-negative, but got -1"),
    ),
)
def test_eps(eps, training, text):
    """Newer PyTorch checks it, in these words."""
    with pytest.raises(ValueError, match=text):
        torch_ext.batch_norm_prelu(x, slope, *statistics, training=training, eps=eps)
    if torch.__version__ >= "2.15":
        with pytest.raises(ValueError, match=text):
            F.batch_norm(x, *statistics, training=training, eps=eps)


def test_half_of_the_statistics():
    with pytest.raises(ValueError, match="must either both be None or neither be None"):
        torch_ext.batch_norm_prelu(x, slope, zeros(3), None, training=True)
    with pytest.raises(ValueError, match="must either both be None or neither be None"):
        torch_ext.instance_norm_prelu(x, slope, None, ones(3))


def test_parameters_of_another_dtype():
    text = "mixed dtype (CPU): expect parameter to have scalar type of Float"
    for name, tensors in {
        "weight": (*statistics, ones(3).double()),
        "bias": (*statistics, None, ones(3).double()),
        "running_mean": (zeros(3).double(), ones(3).double()),
    }.items():
        kind, said = raised(torch_ext.batch_norm_prelu, x, slope, *tensors, training=True)
        assert said.startswith(text) and name in said
        assert raised(F.batch_norm, x, *tensors, training=True) == (kind, text)


@pytest.mark.parametrize("norm", FUNCTIONS)
@pytest.mark.parametrize(
    "bad", (torch.full((4,), 0.25), torch.full((3,), 0.25).double(), torch.full((3, 1), 0.25))
)
def test_the_slope_is_checked_as_prelu_does(norm, bad):
    z = PYTORCH_NORMS[norm](x, *statistics)
    expected = raised(torch_ext.prelu, z, bad)
    assert raised(FUNCTIONS[norm], x, bad, *statistics) == expected


@pytest.mark.parametrize("norm", FUNCTIONS)
def test_unbatched_inputs_and_other_devices(norm):
    with pytest.raises(RuntimeError, match="at least 2 dimensions, but got: ndim = 1"):
        FUNCTIONS[norm](torch.ones(3), torch.tensor(0.25), zeros(1), ones(1))
    with pytest.raises(RuntimeError, match="same device"):
        FUNCTIONS[norm](x, slope, *statistics, torch.ones(3, device="meta"))
    with pytest.raises(RuntimeError, match="requires_grad"):
        FUNCTIONS[norm](x, slope, zeros(3), ones(3).requires_grad_())


def test_statistics_and_gradients_of_another_shape():
    """The internal operators are reachable, so they may not read past a tensor's end."""
    operators = torch.ops.torch_ext
    p = problem_of(CASES[0], "batch", True, torch.float32)
    mean, var = p.running_mean, p.running_var
    arguments = (p.input, p.slope, p.weight, p.bias)
    with pytest.raises(RuntimeError, match=r"the shape \(C\) or \(N, C\)"):
        operators._norm_prelu_eval(*arguments, mean[:3], var[:3], 1e-5)
    with pytest.raises(RuntimeError, match="to be alike"):
        operators._norm_prelu_eval(*arguments, mean, var.expand(4, 16), 1e-5)
    mask = [True] * 4
    for grad_output in (p.grad_output[:2], p.grad_output.double()):
        with pytest.raises(RuntimeError, match="Expected `grad_output` to have the"):
            operators._norm_prelu_backward(grad_output, *arguments, mean, var, 1e-5, True, mask)


def test_meta_raises_the_same():
    for input, args, kwargs in BATCH_CASES.values():
        expected = raised(torch_ext.batch_norm_prelu, input, slope, *args, **kwargs)
        args = [None if value is None else value.to("meta") for value in args]
        actual = raised(
            torch_ext.batch_norm_prelu, input.to("meta"), slope.to("meta"), *args, **kwargs
        )
        assert actual == expected
