"""Sparse, MKL-DNN, nested and quantized tensors: what stock does, in its words."""

import pytest
import torch
import torch.nn.functional as F

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

_nested = torch.nested.nested_tensor


def _other_layouts():
    image, slopes = torch.randn(2, 3, 4), torch.randn(3)
    jagged = _nested([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    return {
        "sparse": (image.to_sparse(), slopes),
        "sparse_shared": (image.to_sparse(), slopes[:1]),
        "sparse_csr": (image[0].to_sparse_csr(), slopes[:1]),
        "sparse_weight": (image, slopes.to_sparse()),
        "mkldnn": (image.to_mkldnn(), slopes),
        "mkldnn_both": (image.to_mkldnn(), slopes.to_mkldnn()),
        "mkldnn_weight": (image, slopes.to_mkldnn()),
        "nested": (_nested([torch.randn(3, 2), torch.randn(3, 4)]), slopes[:1]),
        "nested_per_channel": (_nested([torch.randn(3, 2), torch.randn(3, 4)]), slopes),
        "jagged": (jagged, slopes[:1]),
        "mkldnn_mixed": (image.bfloat16().to_mkldnn(), slopes),
        "sparse_mixed": (image.bfloat16().to_sparse(), slopes[:1]),
        "nested_mixed": (_nested([torch.randn(3, 2).bfloat16()]), slopes[:1]),
        "quantized": (torch.quantize_per_tensor(image, 0.1, 0, torch.quint8), slopes),
    }


@pytest.mark.filterwarnings("ignore")  # torch's own, about nested, sparse and quantized tensors
def test_other_layouts_do_what_stock_does():
    def outcome(operator, input, weight):
        try:
            output = operator(input, weight)
        except RuntimeError as error:
            return type(error), str(error)
        return output.layout, output.dtype, output.to_dense().tolist()

    outcomes = {
        name: (outcome(prelu, *args), outcome(F.prelu, *args))
        for name, args in _other_layouts().items()
    }
    assert {name: ours for name, (ours, _) in outcomes.items()} == {
        name: stock for name, (_, stock) in outcomes.items()
    }
    assert outcomes["mkldnn"][0][0] == torch._mkldnn
    assert "Type promoting not supported" in outcomes["mkldnn_mixed"][0][1]


@pytest.mark.filterwarnings("ignore")
def test_prelu_backward_refuses_other_layouts():
    dense = torch.randn(2, 3, 4)
    for input, weight in _other_layouts().values():
        for arguments in (
            (dense, input, weight),
            (input, dense, torch.ones(3)),
            (input, input, weight),
        ):
            if all(
                argument.layout == torch.strided and not argument.is_quantized
                for argument in arguments
            ):
                continue
            with pytest.raises(
                (RuntimeError, ValueError)
            ):  # ValueError: from jagged tensors, which are Python
                prelu_backward(*arguments, [True, True])
