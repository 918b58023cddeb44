"""Errors of norm + PReLU: PyTorch's, in its words where it has words."""

import pytest
import torch
import torch.nn.functional as F
from norm_cases import FUNCTIONS

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


def test_running_statistics_of_another_dtype():
    doubles = [tensor.double() for tensor in statistics]
    text = "mixed dtype (CPU): expect parameter to have scalar type of Float"
    kind, said = raised(torch_ext.batch_norm_prelu, x, slope, *doubles, training=True)
    assert said.startswith(text) and "running_mean" in said
    assert raised(F.batch_norm, x, *doubles, training=True) == (kind, text)


@pytest.mark.parametrize("norm", FUNCTIONS)
def test_a_running_statistic_has_no_gradient(norm):
    with pytest.raises(RuntimeError, match="requires_grad"):
        FUNCTIONS[norm](x, slope, zeros(3), ones(3).requires_grad_())


def test_meta_raises_the_same():
    for input, args, kwargs in BATCH_CASES.values():
        expected = raised(torch_ext.batch_norm_prelu, input, slope, *args, **kwargs)
        args = [None if value is None else value.to("meta") for value in args]
        actual = raised(
            torch_ext.batch_norm_prelu, input.to("meta"), slope.to("meta"), *args, **kwargs
        )
        assert actual == expected
