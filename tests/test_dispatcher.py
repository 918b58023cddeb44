"""What the dispatcher knows about the two operators: schemas, keys, tags, fake kernels."""

import pathlib
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from cases import (
    EMPTY_CASES,
    Case,
    case_inputs,
    channels_last,
    expanded,
    finite_slopes,
    random_values,
    rotated,
    significant_strides,
    single_value,
    step_2,
)
from reference import assert_same_bits
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_ext

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

SCHEMAS = {
    "prelu": "torch_ext::prelu(Tensor input, Tensor weight) -> Tensor",
    "prelu_backward": "torch_ext::prelu_backward(Tensor grad_output, Tensor input, Tensor weight, "
    "bool[2] output_mask) -> (Tensor grad_input, Tensor grad_weight)",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_is_frozen(name):
    """Saved programs refer to it: a change breaks them."""
    operator = getattr(torch.ops.torch_ext, name)
    assert operator.overloads() == ["default"]
    assert str(operator.default._schema) == SCHEMAS[name]


def test_arguments_have_names(device):
    input, weight = (
        random_values((2, 3, 4), torch.float32, device),
        finite_slopes((3,), torch.float32, device),
    )
    assert torch.equal(prelu(weight=weight, input=input), prelu(input, weight))
    by_name = prelu_backward(
        output_mask=[True, True], weight=weight, input=input, grad_output=input
    )
    assert all(
        torch.equal(*pair)
        for pair in zip(by_name, prelu_backward(input, input, weight, [True, True]))
    )


def _has_kernel(name, key, library="torch_ext"):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{name}", key)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_has_a_kernel_of_its_own(name):
    """A missing Autograd kernel would lose gradients without a word."""
    missing = {
        key
        for key in ("CPU", "Meta", "FuncTorchBatchedDecomposition")
        if not _has_kernel(name, key)
    }
    if not (
        _has_kernel(name, "Autograd")
        or (_has_kernel(name, "AutogradCPU") and _has_kernel(name, "AutogradCUDA"))
    ):
        missing.add("Autograd")
    if torch_ext.build_info()["cuda"] and not _has_kernel(name, "CUDA"):
        missing.add("CUDA")
    assert not missing


AUTOCAST_KEYS = [name for name in torch._C.DispatchKey.__members__ if name.startswith("Autocast")]


def test_autocast_has_a_kernel_wherever_stock_has_one():
    stocks, ours = (
        {key for key in AUTOCAST_KEYS if _has_kernel("prelu", key, library)}
        for library in ("aten", "torch_ext")
    )
    assert {"AutocastCPU", "AutocastCUDA", "AutocastXPU"} <= stocks
    assert stocks <= ours


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_devices_without_kernels_of_ours_take_float32_slopes_too(dtype):
    """What an XPU calls, here on CPU tensors. A CPU build beside a CUDA torch is such a case."""
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
    prelu = torch.ops.torch_ext.prelu.default
    input, weight = torch.randn(2, 3, 50).to(dtype), torch.tensor([0.3, -1.7, 2.9])
    assert_same_bits(prelu.redispatch(elsewhere, input, weight), prelu(input, weight))
    alike = weight.to(dtype)
    assert_same_bits(prelu.redispatch(elsewhere, input, alike), prelu(input, alike))
    with pytest.raises(RuntimeError, match="Type promoting not supported"):
        prelu.redispatch(elsewhere, input, weight.double())


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_tags_promise_what_pt2_needs_and_nothing_random(name):
    tags = getattr(torch.ops.torch_ext, name).default.tags
    assert torch.Tag.pt2_compliant_tag in tags
    layout_tags = {
        "flexible_layout",
        "needs_fixed_stride_order",
        "needs_exact_strides",
        "needs_contiguous_strides",
    }
    assert len({tag.name for tag in tags} & layout_tags) == 1, "the layout tag is chosen on purpose"
    assert not {torch.Tag.nondeterministic_seeded, torch.Tag.inplace_view} & set(tags)


# ---- torch.library.opcheck ---------------------------------------------------------------------

SAMPLES = (
    Case("scalar", (), ()),
    Case("vector", (20,), (1,)),
    Case("rows", (6, 5), (5,)),
    Case("tokens", (2, 5, 6), (5,), channels_last),
    Case("image", (2, 3, 4, 5), (3,)),
    Case("image_channels_last", (2, 3, 4, 5), (3,), channels_last),
    Case("volume_channels_last", (2, 3, 2, 4, 3), (3,), channels_last),
    Case("shared", (2, 3, 4, 5), ()),
    Case("sliced", (2, 3, 4, 5), (3,), step_2),
    Case("rotated", (3, 4, 5), (4,), rotated),
    Case("expanded", (2, 3, 4, 5), (3,), expanded),
)


@pytest.fixture(params=SAMPLES, ids=lambda case: case.name)
def sample(request):
    return request.param


@pytest.fixture(params=(False, True), ids=("no_grad", "requires_grad"))
def requires_grad(request):
    return request.param


def test_opcheck_finds_nothing_in_prelu(sample, dtypes, requires_grad, device):
    """Schema, autograd registration, fake kernel, and AOT dispatch with symbolic sizes."""
    input = case_inputs(sample, dtypes[0], device)[0].detach().requires_grad_(requires_grad)
    weight = finite_slopes(sample.slopes, dtypes[1], device).requires_grad_(requires_grad)
    _opcheck(prelu, (input, weight))


def test_opcheck_finds_nothing_in_prelu_backward(sample, requires_grad, device):
    """For one mask each, and for grad_output in another layout."""
    for dtypes, mask in (
        ((torch.float64, torch.float64), [True, True]),
        ((torch.bfloat16, torch.float32), [True, False]),
        ((torch.float32, torch.float32), [False, True]),
    ):
        input = case_inputs(sample, dtypes[0], device)[0].detach().requires_grad_(requires_grad)
        weight = finite_slopes(sample.slopes, dtypes[1], device).requires_grad_(requires_grad)
        grad_output = random_values(sample.shape, dtypes[0], device, seed=1).requires_grad_(
            requires_grad
        )
        _opcheck(prelu_backward, (grad_output, input, weight, mask))


def _opcheck(operator, arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # from inside torch
        results = torch.library.opcheck(operator, arguments)
    assert set(results) >= {
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    }
    assert set(results.values()) == {"SUCCESS"}


# ---- Fake and Meta kernels ---------------------------------------------------------------------


def _description(tensors):
    return [t if t is None else (t.shape, t.dtype, significant_strides(t)) for t in tensors]


def test_fake_and_meta_kernels_predict_shapes_dtypes_and_strides(case, dtypes):
    """Compared here, because opcheck skips the strides of CPU tensors in some versions."""
    dtype, weight_dtype = dtypes
    for input in case_inputs(case, dtype):
        weight, grad_output = finite_slopes(case.slopes, weight_dtype), single_value(input)
        real = [prelu(input, weight), *prelu_backward(grad_output, input, weight, [True, True])]
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(tensor) for tensor in (input, weight, grad_output)]
            predicted = [prelu(*fake[:2]), *prelu_backward(fake[2], *fake[:2], [True, True])]
            assert all(tensor.device.type == "cpu" for tensor in predicted)
            masked = prelu_backward(fake[2], *fake[:2], [False, True])
        assert _description(predicted) == _description(real)
        assert masked[0] is None and _description(masked[1:]) == _description(real[2:])
        meta = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            for t in (input, weight, grad_output)
        ]
        predicted = [prelu(*meta[:2]), *prelu_backward(meta[2], *meta[:2], [True, True])]
        assert all(tensor.is_meta for tensor in predicted)
        assert _description(predicted) == _description(real)


@pytest.mark.parametrize("empty", EMPTY_CASES, ids=lambda case: case.name)
def test_the_meta_kernel_knows_empty_tensors(empty):
    input, weight = (
        torch.empty(empty.shape, device="meta"),
        torch.empty(empty.slopes, device="meta"),
    )
    assert prelu(input, weight).shape == empty.shape
    grad_input, grad_weight = prelu_backward(input, input, weight, [True, True])
    assert (grad_input.shape, grad_weight.shape) == (empty.shape, empty.slopes)


def test_gradients_flow_on_meta_tensors():
    input = torch.empty(2, 3, 4, device="meta", requires_grad=True)
    weight = torch.empty(3, device="meta", requires_grad=True)
    prelu(input, weight).sum().backward()
    assert (input.grad.shape, weight.grad.shape) == ((2, 3, 4), (3,))
    assert input.grad.is_meta and weight.grad.is_meta


def test_fake_cuda_tensors_need_no_gpu():
    with FakeTensorMode():
        input, weight = torch.empty(2, 3, 4, device="cuda"), torch.empty(3, device="cuda")
        output = prelu(input, weight)
        assert (output.device.type, output.shape) == ("cuda", (2, 3, 4))


# ---- The library alone -------------------------------------------------------------------------


def test_loading_the_library_alone_gives_the_whole_operator():
    """No line of the Python package runs here; a C++ program gets the same."""
    library = pathlib.Path(torch_ext.__file__).parent / "lib" / "libtorch_ext.so"
    program = f"""
        import sys, torch
        torch.ops.load_library({str(library)!r})
        x = torch.tensor([[-2.0, 0.5], [3.0, -4.0]], requires_grad=True)
        w = torch.tensor([0.25, 2.0], requires_grad=True)
        y = torch.ops.torch_ext.prelu(x, w)
        assert y.tolist() == [[-0.5, 0.5], [3.0, -8.0]]
        grads = torch.autograd.grad(y.sum(), (x, w), create_graph=True)
        assert grads[0].tolist() == [[0.25, 1.0], [1.0, 2.0]] and grads[1].tolist() == [-2.0, -4.0]
        assert torch.autograd.grad(grads[0].sum(), w)[0].tolist() == [1.0, 1.0]
        assert torch.ops.torch_ext.prelu(x.to("meta"), w.to("meta")).shape == (2, 2)
        prelu = torch.ops.torch_ext.prelu
        assert torch.func.vmap(prelu)(x[:, :, None], w[:, None]).shape == (2, 2, 1)
        with torch.autocast("cpu"):
            assert torch.ops.torch_ext.prelu(x, w).dtype == torch.bfloat16
        assert "torch_ext" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
