"""torch_ext.override_aten under PyTorch's transforms, modes and compilers."""

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, random_values
from installed import LIBRARY, run_python
from profiled import OURS, STOCK, STOCK_AND_BACKWARD, kernels
from recorder import Recorder
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu


@pytest.fixture
def leaves():
    input = random_values((4, 3, 5), torch.float64, zeros=False)  # at 0, stock has another rule
    assert_both_branches(input)
    return input.requires_grad_(), finite_slopes((3,), torch.float64).requires_grad_()


def both(run):
    """What it returns with stock and with the override."""
    stock = run()
    with torch_ext.override_aten():
        return stock, run()


def assert_same(run):
    for expected, actual in zip(*both(run), strict=True):
        assert expected.detach().norm() > 0
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# ---- Derivatives -------------------------------------------------------------------------------


def test_a_dispatch_mode_sees_our_operators(leaves):
    with torch_ext.override_aten(), Recorder() as recorder:
        F.prelu(*leaves).sum().backward()
    assert {prelu.default, torch.ops.torch_ext.prelu_backward.default} <= set(recorder.seen)
    assert not any("_prelu_kernel" in str(operator) for operator in recorder.seen)


def test_second_order(leaves):
    def run():
        output = F.prelu(*leaves).pow(3).sum()
        first = torch.autograd.grad(output, leaves, create_graph=True)
        scalar = first[0].pow(2).sum() + first[1].pow(2).sum()
        return (*first, *torch.autograd.grad(scalar, leaves))

    assert_same(run)


def test_gradgradcheck(leaves):
    with torch_ext.override_aten():
        assert torch.autograd.gradcheck(F.prelu, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(F.prelu, leaves)


def test_forward_mode(leaves):
    tangents = tuple(random_values(leaf.shape, torch.float64, seed=7) for leaf in leaves)

    def run():
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, leaves, tangents)
            return tuple(forward_ad.unpack_dual(F.prelu(*duals)))

    assert_same(run)


def test_transforms_of_torch_func(leaves):
    input, weight = (leaf.detach() for leaf in leaves)

    def loss(input, weight):
        return F.prelu(input, weight).pow(2).sum()

    def run():
        return (
            torch.vmap(F.prelu, (0, None))(input[:, None], weight),
            *torch.func.grad(loss, (0, 1))(input, weight),
            *torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))(input[:, None], weight),
            *torch.func.jvp(F.prelu, (input, weight), (input + 1, weight + 1)),
            torch.func.hessian(loss, 1)(input, weight),
        )

    assert_same(run)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_casts_both_arguments_as_stock_does(dtype):
    input = random_values((4, 3, 5), torch.float32).requires_grad_()
    weight = torch.tensor([0.1, -0.3, 1.7]).requires_grad_()  # not 16-bit numbers

    def run():
        with torch.autocast("cpu", dtype), Recorder() as recorder:
            output = F.prelu(input, weight)
        gradient, _ = torch.autograd.grad(output, (input, weight), output.detach())
        return output, gradient, recorder.seen

    (*stock, stocks), (*overridden, ours) = both(run)
    for one, other in zip(overridden, stock):
        assert_same_bits(one, other)
    assert stock[0].dtype == dtype
    assert torch.ops.aten._prelu_kernel.default in stocks
    assert prelu.default in ours


# ---- Graphs: the same inside as outside --------------------------------------------------------


def assert_graphs_are_stocks(record):
    stock, overridden = both(record)
    assert str(stock) == str(overridden)
    assert "prelu" in str(stock)
    assert "torch_ext" not in str(stock)


@pytest.mark.parametrize("mode", (torch.enable_grad, torch.no_grad, torch.inference_mode))
@pytest.mark.parametrize("tracing_mode", ("real", "fake", "symbolic"))
def test_make_fx_records_what_it_did(leaves, tracing_mode, mode):
    def record():
        with mode():
            return make_fx(F.prelu, tracing_mode=tracing_mode)(*leaves).code

    assert_graphs_are_stocks(record)
    assert "_prelu_kernel" in record()  # still taken apart: see csrc/ops/override_aten.cpp


def test_export_records_what_it_did(leaves):
    input = leaves[0].detach().float()

    def record():
        program = torch.export.export(nn.Sequential(nn.PReLU(3)), (input,))
        decomposed = program.run_decompositions()
        assert "prelu" not in str(decomposed.graph)
        return [str(p.graph) for p in (program, program.run_decompositions({}), decomposed)]

    assert_graphs_are_stocks(record)


def test_an_exported_program_runs_our_kernels_where_it_kept_the_operator(leaves):
    input = leaves[0].detach().float()
    layer = nn.PReLU(3)
    module = torch.export.export(layer, (input,)).module()
    with torch.no_grad():
        stock, overridden = both(lambda: module(input))
        assert_same_bits(overridden, stock)
        with torch_ext.override_aten():
            assert kernels(lambda: module(input)) == OURS
        assert kernels(lambda: module(input)) == STOCK


def test_fake_tensors_stay_stocks(leaves):
    with torch_ext.override_aten(), FakeTensorMode() as mode, Recorder() as recorder:
        output = F.prelu(*map(mode.from_tensor, leaves))
    assert output.shape == leaves[0].shape
    assert torch.ops.aten._prelu_kernel.default in recorder.seen


@pytest.mark.parametrize("compiled_inside", (False, True))
@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compiled_code_is_stocks_wherever_it_is_compiled_and_run(leaves, backend, compiled_inside):
    torch.compiler.reset()

    def run(*leaves):
        return F.prelu(*leaves).sin()

    compiled = torch.compile(run, backend=backend, fullgraph=True)

    def train():
        output = compiled(*leaves)
        return output, *torch.autograd.grad(output.sum(), leaves)

    if compiled_inside:
        with torch_ext.override_aten():
            compiled(*leaves)
    else:
        compiled(*leaves)
    expected = run(*leaves)
    gradients = torch.autograd.grad(expected.sum(), leaves)
    for actual in both(train):
        torch.testing.assert_close(actual, (expected, *gradients))
    for names in both(lambda: kernels(train)):
        assert names <= STOCK_AND_BACKWARD


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_inside_a_compiled_function_it_breaks_the_graph(leaves):
    def run(input, weight):
        scaled = input * 3
        with torch_ext.override_aten():
            inside = F.prelu(scaled, weight)
        return inside, F.prelu(inside, weight)

    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager")
    for _ in range(2):
        for one, other in zip(compiled(*leaves), run(*leaves)):
            assert_same_bits(one, other)
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="enter it around the call"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(*leaves)
    assert kernels(lambda: F.prelu(*leaves)) == STOCK  # nothing was left open


# ---- Loading -----------------------------------------------------------------------------------

IMPORT = """
import torch
import torch_ext

assert not torch.is_warn_always_enabled()
for key in ("CPU", "AutogradCPU", "CUDA", "AutogradCUDA", "Meta"):
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::prelu", key), key
"""
LOAD = (
    f"import ctypes; ctypes.CDLL({str(LIBRARY)!r})"  # as a C++ program does, without Python's torch
)


@pytest.mark.parametrize("program", (IMPORT, LOAD), ids=("import", "load"))
def test_nothing_is_said_and_nothing_is_seen_until_it_is_entered(program):
    """PyTorch warns of a kernel that is replaced, and has tools that ask which kernels there are."""
    assert run_python(program).stderr == ""
