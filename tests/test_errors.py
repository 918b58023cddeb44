"""What is no tensor, another device, names, a sparse gradient, one sample under vmap: refused as PyTorch does.

test_battery_errors.py has the other bad arguments.
"""

import pytest
import torch
import torch.nn.functional as F

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def _error(operator, *args):
    with pytest.raises(RuntimeError) as caught:  # NotImplementedError is one
        operator(*args)
    return caught.type, str(caught.value)


def test_cpu_and_cuda_tensors_do_not_mix(device):
    """By our own words, before anything is launched; and the next call is right."""
    if device == "cpu":
        pytest.skip("needs a GPU")
    on_cpu, on_gpu = torch.ones(2, 3), torch.ones(2, 3, device=device)
    for args in (
        (on_cpu, on_gpu[0]),
        (on_gpu, on_cpu[0]),
        (on_gpu, on_cpu[0, 0]),
        (on_cpu, on_gpu[0, 0]),
    ):
        assert "same device" in _error(prelu, *args)[1]
        for grad_output in (on_cpu, on_gpu):
            error = _error(prelu_backward, grad_output, *args, [True, True])[1]
            assert "same device" in error
    error = _error(prelu_backward, on_cpu, on_gpu, on_gpu[0], [True, True])[1]
    assert "same device" in error and "grad_output" in error
    assert (prelu(-on_gpu, on_gpu[0]) == -1).all()


# ---- What is no tensor -------------------------------------------------------------------------

NO_TENSORS = {
    "None": None,
    "float": 0.25,
    "list": [1.0] * 100_000,
    "array": torch.zeros(100_000).numpy(),
    "str": "1",
}


@pytest.mark.parametrize("value", NO_TENSORS.values(), ids=NO_TENSORS)
def test_what_is_no_tensor_is_a_type_error_in_one_line_as_pytorchs(value, device):
    tensor = torch.ones(3, device=device)
    for arguments, name in (((value, tensor), "input"), ((tensor, value), "weight")):
        with pytest.raises(TypeError) as ours:
            torch_ext.prelu(*arguments)
        with pytest.raises(TypeError) as pytorchs:
            F.prelu(*arguments)
        message = str(ours.value)
        assert len(message) < 100 and "\n" not in message and f"'{name}'" in message
        assert message == str(pytorchs.value).replace("numpy.ndarray", "ndarray")
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
