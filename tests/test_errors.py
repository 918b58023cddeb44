"""Bad arguments, straight through torch.ops: stock's errors in stock's order, Meta included."""

import re

import pytest
import torch
import torch.nn.functional as F
from cases import random_values
from reference import assert_same_bits

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
PROMOTING = "prelu: Type promoting not supported. Got {} and {}"
ZERO_DIM = "Not allow zero-dim input tensor."
MISMATCH = (
    "Mismatch of parameter numbers and input channel size. "
    "Found parameter numbers = {} and channel size = {}."
)
WEIGHT_NDIM = "prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {}"
UNSUPPORTED = "\"prelu_cpu\" not implemented for '{}'"

# name: input's shape and dtype, weight's shape and dtype, text. "before": two rules are broken.
BAD_ARGUMENTS = {
    "float_with_half_weight": ((2, 3, 4), F32, (3,), F16, PROMOTING.format("Float", "Half")),
    "float_with_double_weight": ((2, 3, 4), F32, (3,), F64, PROMOTING.format("Float", "Double")),
    "double_with_float_weight": ((2, 3, 4), F64, (3,), F32, PROMOTING.format("Double", "Float")),
    "half_with_bfloat16_weight": ((2, 3, 4), F16, (3,), BF16, PROMOTING.format("Half", "BFloat16")),
    "bfloat16_with_half_weight": ((2, 3, 4), BF16, (3,), F16, PROMOTING.format("BFloat16", "Half")),
    "half_with_double_weight": ((2, 3, 4), F16, (3,), F64, PROMOTING.format("Half", "Double")),
    "long_with_float_weight": ((2, 3, 4), torch.long, (3,), F32, PROMOTING.format("Long", "Float")),
    "half_with_long_weight": ((2, 3, 4), F16, (3,), torch.long, PROMOTING.format("Half", "Long")),
    "dtype_with_0d_weight": ((2, 3, 4), F32, (), F64, PROMOTING.format("Float", "Double")),
    "dtype_before_zero_dim": ((), F32, (3,), F16, PROMOTING.format("Float", "Half")),
    "dtype_before_mismatch": ((2, 3), F32, (4,), F16, PROMOTING.format("Float", "Half")),
    "zero_dim": ((), F32, (3,), F32, ZERO_DIM),
    "zero_dim_with_empty_weight": ((), F32, (0,), F32, ZERO_DIM),
    "zero_dim_before_weight_ndim": ((), F32, (2, 2), F32, ZERO_DIM),
    "too_many_slopes": ((2, 3, 4), F32, (4,), F32, MISMATCH.format(4, 3)),
    "too_few_slopes": ((2, 3, 4), F32, (2,), F32, MISMATCH.format(2, 3)),
    "slopes_for_the_last_dimension": ((2, 3, 4, 5), F32, (5,), F32, MISMATCH.format(5, 3)),
    "no_slopes": ((2, 3, 4), F32, (0,), F32, MISMATCH.format(0, 3)),
    "slopes_for_no_channels": ((2, 0, 4), F32, (3,), F32, MISMATCH.format(3, 0)),
    "slopes_for_a_vector": ((5,), F32, (5,), F32, MISMATCH.format(5, 1)),
    "mismatch_of_empty_input": ((0, 3, 4), F32, (2,), F32, MISMATCH.format(2, 3)),
    "mismatch_before_weight_ndim": ((2, 3, 4), F32, (2, 2), F32, MISMATCH.format(4, 3)),
    "mismatch_before_unsupported_dtype": (
        (2, 3),
        torch.long,
        (2,),
        torch.long,
        MISMATCH.format(2, 3),
    ),
    "weight_shaped_like_input": ((2, 3, 4), F32, (1, 3, 1), F32, WEIGHT_NDIM.format(3)),
    "weight_of_one_in_two_dimensions": ((2, 3, 4), F32, (1, 1), F32, WEIGHT_NDIM.format(2)),
    "weight_ndim_with_zero_dim_input": ((), F32, (1, 1), F32, WEIGHT_NDIM.format(2)),
    "weight_ndim_in_the_mixed_pair": ((2, 3, 4), F32, (3, 1), F32, WEIGHT_NDIM.format(2)),
    "weight_ndim_before_unsupported_dtype": (
        (2, 3),
        torch.long,
        (3, 1),
        torch.long,
        WEIGHT_NDIM.format(2),
    ),
    "long": ((2, 3), torch.long, (3,), torch.long, UNSUPPORTED.format("Long")),
    "int": ((2, 3), torch.int32, (), torch.int32, UNSUPPORTED.format("Int")),
    "byte": ((2, 3), torch.uint8, (3,), torch.uint8, UNSUPPORTED.format("Byte")),
    "bool": ((2, 3), torch.bool, (1,), torch.bool, UNSUPPORTED.format("Bool")),
    "complex": ((2, 3), torch.complex64, (3,), torch.complex64, UNSUPPORTED.format("ComplexFloat")),
    "float8": (
        (2, 3),
        torch.float8_e4m3fn,
        (3,),
        torch.float8_e4m3fn,
        UNSUPPORTED.format("Float8_e4m3fn"),
    ),
    "empty_long": ((0, 3), torch.long, (3,), torch.long, UNSUPPORTED.format("Long")),
}


@pytest.fixture(params=BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def bad(request):
    shape, dtype, slopes, weight_dtype, text = request.param
    return torch.ones(shape).to(dtype), torch.ones(slopes).to(weight_dtype), text


def _error(operator, *args):
    with pytest.raises(RuntimeError) as caught:  # NotImplementedError is one
        operator(*args)
    return caught.type, str(caught.value)


def _differentiable(*tensors):
    return [
        t.detach().requires_grad_(t.dtype.is_floating_point and t.dtype.itemsize > 1)
        for t in tensors
    ]


def test_bad_arguments_raise_what_stock_raises(bad, device):
    input, weight, text = bad
    input, weight, text = (
        input.to(device),
        weight.to(device),
        text.replace("prelu_cpu", f"prelu_{device}"),
    )
    expected = _error(F.prelu, input, weight)
    assert expected[1] == text
    assert _error(prelu, input, weight) == expected
    assert _error(prelu, *_differentiable(input, weight)) == expected
    with torch.inference_mode():  # skips autograd's kernel: the device's own checks count
        assert _error(prelu, input, weight) == expected


def test_the_backward_operator_checks_its_arguments_itself(bad, device):
    input, weight, text = bad
    input, weight = input.to(device), weight.to(device)
    error_type = NotImplementedError if "not implemented" in text else RuntimeError
    text = text.replace("prelu_cpu", f"prelu_backward_{device}")
    for mask in ([True, True], [True, False], [False, True], [False, False]):
        assert _error(prelu_backward, torch.ones_like(input), input, weight, mask) == (
            error_type,
            text,
        )
    differentiable = _differentiable(input, input, weight)
    assert _error(prelu_backward, *differentiable, [True, True]) == (error_type, text)
    with torch.inference_mode():
        error = _error(prelu_backward, torch.ones_like(input), input, weight, [True, True])
    assert error == (error_type, text)


def test_meta_rejects_what_the_kernels_reject(bad):
    """Stock's Meta kernels let wrong dtypes pass."""
    input, weight, text = bad
    input, weight = input.to("meta"), weight.to("meta")
    for error_type, message in (
        _error(prelu, input, weight),
        _error(prelu, *_differentiable(input, weight)),
        _error(prelu_backward, torch.empty_like(input), input, weight, [True, True]),
    ):
        if "not implemented" in text:
            assert error_type is NotImplementedError and text.partition(" ")[2] in message
        else:
            assert (error_type, message) == (RuntimeError, text)


def test_the_mixed_pair_obeys_the_rules_of_shape(mixed_dtypes, device):
    dtype, weight_dtype = mixed_dtypes
    for shape, slopes, text in (
        ((), (3,), ZERO_DIM),
        ((2, 3, 4), (4,), MISMATCH.format(4, 3)),
        ((2, 3, 4), (1, 1), WEIGHT_NDIM.format(2)),
    ):
        input = torch.ones(shape, dtype=dtype, device=device)
        weight = torch.ones(slopes, dtype=weight_dtype, device=device)
        assert _error(prelu, input, weight) == (RuntimeError, text)
        assert _error(prelu_backward, input, input, weight, [True, True]) == (RuntimeError, text)
        assert _error(prelu, input.to("meta"), weight.to("meta")) == (RuntimeError, text)


def test_a_float32_weight_is_the_only_other_dtype_that_is_accepted(device):
    dtypes = (F64, F32, F16, BF16, torch.long, torch.bool, torch.complex64)
    accepted = set()
    for dtype in dtypes:
        for weight_dtype in dtypes:
            input, weight = (
                torch.ones((2, 3), device=device).to(dtype),
                torch.ones(3, device=device).to(weight_dtype),
            )
            try:
                assert prelu(input, weight).dtype == dtype
                accepted.add((dtype, weight_dtype))
            except RuntimeError:
                pass
    assert accepted == {(F64, F64), (F32, F32), (F16, F16), (BF16, BF16), (F16, F32), (BF16, F32)}


@pytest.mark.parametrize("dtype", (F32, torch.long), ids=("float32", "unsupported_dtype"))
def test_tensors_of_two_devices_are_rejected(dtype, device):
    """Before an unsupported dtype is."""
    here, there = torch.ones((2, 3)).to(device, dtype), torch.ones((2, 3)).to("meta", dtype)
    for slope in (slice(3), 0):  # a 0-D weight of another device is not accepted either
        for args in ((here, there[0][slope]), (there, here[0][slope])):
            error_type, text = _error(prelu, *args)
            assert error_type is RuntimeError and "device" in text
            assert _error(prelu_backward, args[0], *args, [True, True])[0] is RuntimeError


def test_cpu_and_cuda_tensors_do_not_mix(device):
    if device == "cpu":
        pytest.skip("needs a GPU")
    on_cpu, on_gpu = torch.ones(2, 3), torch.ones(2, 3, device=device)
    for args in (
        (on_cpu, on_gpu[0]),
        (on_gpu, on_cpu[0]),
        (on_gpu, on_cpu[0, 0]),
        (on_cpu, on_gpu[0, 0]),
    ):
        assert "device" in _error(prelu, *args)[1]
        assert "device" in _error(prelu_backward, args[0], *args, [True, True])[1]
    assert "grad_output" in _error(prelu_backward, on_cpu, on_gpu, on_gpu[0], [True, True])[1]


# ---- grad_output, masks, undefined tensors -----------------------------------------------------

BAD_GRAD_OUTPUTS = {
    "transposed_shape": torch.ones(2, 4, 3),
    "same_number_of_elements": torch.ones(24),
    "broadcastable": torch.ones(1, 3, 1),
    "smaller_batch": torch.ones(1, 3, 4),
    "larger": torch.ones(3, 3, 4),
    "scalar": torch.ones(()),
    "empty": torch.ones(0),
    "one_more_dimension": torch.ones(1, 2, 3, 4),
    "double": torch.ones(2, 3, 4, dtype=F64),
    "half": torch.ones(2, 3, 4, dtype=F16),
    "long": torch.ones(2, 3, 4, dtype=torch.long),
    "on_another_device": torch.ones(2, 3, 4, device="meta"),
}


@pytest.mark.parametrize("grad_output", BAD_GRAD_OUTPUTS.values(), ids=BAD_GRAD_OUTPUTS.keys())
@pytest.mark.parametrize(
    "mask", ([True, True], [True, False], [False, True], [False, False]), ids=str
)
def test_grad_output_must_match_input(grad_output, mask, device):
    elsewhere = grad_output.is_meta
    input, weight = torch.ones((2, 3, 4), device=device), torch.ones(3, device=device)
    grad_output = grad_output if elsewhere else grad_output.to(device)
    error_type, text = _error(prelu_backward, grad_output, input, weight, mask)
    assert error_type is RuntimeError and "grad_output" in text
    differentiable = _differentiable(grad_output, input, weight)
    assert "grad_output" in _error(prelu_backward, *differentiable, mask)[1]
    with torch.inference_mode():
        assert "grad_output" in _error(prelu_backward, grad_output, input, weight, mask)[1]
    if not elsewhere:
        on_meta = (tensor.to("meta") for tensor in (grad_output, input, weight))
        assert "grad_output" in _error(prelu_backward, *on_meta, mask)[1]


def test_grad_output_of_the_mixed_pair_has_the_dtype_of_input(mixed_dtypes, device):
    dtype, weight_dtype = mixed_dtypes
    input, weight = (
        torch.ones((2, 3), dtype=dtype, device=device),
        torch.ones(3, dtype=weight_dtype, device=device),
    )
    assert "grad_output" in _error(prelu_backward, input.float(), input, weight, [True, True])[1]


@pytest.mark.parametrize("mask", ([], [True], [True, True, True]), ids=len)
def test_a_mask_has_two_entries(mask, device):
    input, weight = torch.ones((2, 3), device=device), torch.ones(3, device=device)
    _error(prelu_backward, input, input, weight, mask)
    _error(prelu_backward, *_differentiable(input, input, weight), mask)
    with torch.inference_mode():
        _error(prelu_backward, input, input, weight, mask)


def test_an_undefined_tensor_is_rejected_by_name(device):
    input, weight = torch.ones((2, 3), device=device), torch.ones(3, device=device)
    for requires_grad in (False, True):
        input, weight = input.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)
        assert re.search(r"\bweight\b", _error(prelu, input, None)[1])
        assert re.search(r"\binput\b", _error(prelu, None, weight)[1])
        assert re.search(
            r"\bgrad_output\b", _error(prelu_backward, None, input, weight, [True, True])[1]
        )
        assert re.search(r"\binput\b", _error(prelu_backward, input, None, weight, [True, True])[1])
        assert re.search(r"\bweight\b", _error(prelu_backward, input, input, None, [True, True])[1])
    _error(prelu, None, None)
    _error(prelu_backward, None, None, None, [True, True])


def test_an_error_changes_nothing(device):
    input, weight = random_values((3, 5, 7), F32, device), torch.ones(4, device=device)
    copies = input.clone(), weight.clone()
    for _ in range(3):
        _error(prelu, input, weight)
        _error(prelu_backward, input, input, weight, [True, True])
        _error(prelu_backward, input[:1], input, weight[:1], [True, True])
    assert_same_bits(input, copies[0])
    assert_same_bits(weight, copies[1])
    assert_same_bits(prelu(input, weight[:1]), input)


# ---- What is no tensor -------------------------------------------------------------------------

NO_TENSORS = {
    "None": None,
    "float": 0.25,
    "list": [1.0] * 100_000,
    "array": torch.zeros(100_000).numpy(),
    "str": "1",
}


@pytest.mark.parametrize("value", NO_TENSORS.values(), ids=NO_TENSORS)
def test_what_is_no_tensor_is_a_type_error_in_one_line_as_stocks(value, device):
    tensor = torch.ones(3, device=device)
    for arguments, name in (((value, tensor), "input"), ((tensor, value), "weight")):
        with pytest.raises(TypeError) as ours:
            torch_ext.prelu(*arguments)
        with pytest.raises(TypeError) as stock:
            F.prelu(*arguments)
        message = str(ours.value)
        assert len(message) < 100 and "\n" not in message and f"'{name}'" in message
        assert message == str(stock.value).replace("numpy.ndarray", "ndarray")
    with pytest.raises(TypeError, match=r"^prelu\(\): argument 'input' .* must be Tensor, not"):
        torch_ext.PReLU(device=device)(value)


@pytest.mark.filterwarnings("ignore:Named tensors")
def test_named_dimensions_are_refused_by_their_name(device):
    if not hasattr(torch.Tensor, "rename"):
        pytest.skip("this torch has no named tensors any more")
    named = torch.ones(2, 3, device=device, names=("N", "C"))
    with pytest.raises(RuntimeError, match=r"^prelu.*named dimensions.*rename\(None\)$"):
        torch_ext.prelu(named, torch.ones(3, device=device))


# ---- grad_output in another layout -------------------------------------------------------------


@pytest.mark.parametrize("layout", (torch.sparse_coo, torch.sparse_csr), ids=str)
@pytest.mark.parametrize("mask", ([True, False], [False, True], [True, True]), ids=str)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_grad_output_is_refused_by_its_name(layout, mask, device):
    """It was answered, and wrongly: an infinite slope times an element that is not stored is NaN."""
    input, weight = -torch.ones(2, 3, device=device), torch.ones(3, device=device)
    dense = torch.eye(3, device=device)[:2]
    grad_output = dense.to_sparse() if layout == torch.sparse_coo else dense.to_sparse_csr()
    with pytest.raises(RuntimeError, match="`grad_output` to have the layout of `input`"):
        prelu_backward(grad_output, input, weight, mask)
    prelu_backward(grad_output.to_dense(), input, weight, mask)


def test_vmap_reports_the_errors_of_one_sample(device):
    input, weight = torch.ones(5, 2, 3, device=device), torch.ones(5, 4, device=device)
    with pytest.raises(RuntimeError, match="parameter numbers = 4 and channel size = 3"):
        torch.func.vmap(prelu)(input, weight)
    with pytest.raises(RuntimeError, match="Type promoting not supported"):
        torch.func.vmap(prelu)(input, weight[:, :3].double())
    with pytest.raises(RuntimeError, match="Not allow zero-dim input tensor"):
        torch.func.vmap(prelu)(input[:, 0, 0], weight)
