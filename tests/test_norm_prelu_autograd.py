"""What norm + PReLU keeps for its derivatives, and what records its public functions: buffers, autocast."""

import gc
import weakref

import pytest
import torch
from norm_cases import (
    BATCH,
    FUNCTIONS,
    IMAGE,
    SMALL,
    Problem,
    both_modes,
    both_norms,
    problem_of,
)
from reference import assert_same_bits

pytestmark = pytest.mark.contract


# ---- What is kept ------------------------------------------------------------------------------


@both_norms
def test_buffers_may_change_before_the_backward(norm):
    problem = problem_of(IMAGE, norm, False, torch.float32).with_leaves()
    expected = torch.autograd.grad(problem.run(), problem.differentiable, problem.grad_output)
    output = problem.run()
    problem.running_mean.add_(1)
    problem.running_var.mul_(2)
    actual = torch.autograd.grad(output, problem.differentiable, problem.grad_output)
    for pair in zip(actual, expected, strict=True):
        assert_same_bits(*pair)


def test_nothing_outlives_the_graph():
    problem = problem_of(IMAGE, BATCH, True, torch.float32).with_leaves()
    problem.input = problem.input.clone()
    watched = weakref.ref(problem.input)
    output = problem.run()
    output.sum().backward()
    problem.input = None
    gc.collect()
    assert watched() is None
    assert "torch_ext::NormPreluBackward" in output.grad_fn.name()


# ---- What records operators --------------------------------------------------------------------


@both_modes
@both_norms
@pytest.mark.filterwarnings("ignore")
def test_opcheck(norm, training):
    problem = problem_of(SMALL, norm, training, torch.float64).with_leaves()
    function = getattr(torch.ops.torch_ext, f"{norm}_norm_prelu")
    arguments = (
        *(problem.input, problem.slope, problem.running_mean, problem.running_var),
        *(problem.weight, problem.bias, training, problem.momentum, problem.eps),
    )
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(function, arguments, test_utils=tests)


@both_norms
def test_buffers_are_updated_by_a_compiled_step(norm):
    """In one graph, that is."""
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[norm], backend="aot_eager", fullgraph=True)
    eager = problem_of(IMAGE, norm, True, torch.float32).with_leaves()
    traced = eager.with_leaves()
    assert_same_bits(traced.run(compiled), eager.run())
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(traced, name), getattr(eager, name))


def test_torchscript():
    def layer(input: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return torch.ops.torch_ext.batch_norm_prelu(input, slope, None, None, training=True)

    problem = problem_of(IMAGE, BATCH, True, torch.float32)
    scripted = torch.jit.script(layer)
    assert_same_bits(scripted(problem.input, problem.slope), layer(problem.input, problem.slope))


# ---- Mixed precision ---------------------------------------------------------------------------


def test_autocast_casts_a_slope_of_another_type():
    problem = problem_of(IMAGE, BATCH, True, torch.float32)
    problem.slope = problem.slope.half()
    with torch.autocast("cpu", torch.bfloat16):
        output = problem.run()
        assert output.dtype == problem.pytorch().dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="Type promoting not supported. Got Float and Half"):
        problem.run()


# ---- Where there are no kernels of ours --------------------------------------------------------


@both_norms
def test_other_layouts_run_as_the_pair(norm):
    """MKL-DNN has a batch norm in PyTorch: what the pair raises or gives is what comes."""
    problem = problem_of(IMAGE, norm, False, torch.float32)
    problem.input = problem.input.contiguous().to_mkldnn()

    def outcome(function):
        try:
            return function().to_dense()
        except (RuntimeError, NotImplementedError) as error:
            return str(error).splitlines()[0]

    with torch.no_grad():
        ours, theirs = outcome(problem.run), outcome(problem.pytorch)
    assert type(ours) is type(theirs)
    if isinstance(ours, str):
        assert ours == theirs
    else:
        torch.testing.assert_close(ours, theirs)


@both_norms
def test_running_statistics_change_as_pytorchs_do_for_autograd(norm):
    """Batch norm leaves their versions as they are, instance norm bumps them."""
    versions = []
    for run in (Problem.run, Problem.pytorch):
        problem = problem_of(IMAGE, norm, True, torch.float32).with_buffers()
        run(problem)
        versions.append(problem.running_mean._version)
    assert versions[0] == versions[1] == (0 if norm is BATCH else 1)


@both_norms
def test_functionalize_writes_to_running_statistics_of_its_arguments(norm):
    problem = problem_of(IMAGE, norm, True, torch.float32)

    def run(input, mean, var):
        problem.input, problem.running_mean, problem.running_var = input, mean, var
        return problem.run()

    before = [problem.input, problem.running_mean.clone(), problem.running_var.clone()]
    other = [tensor.clone() for tensor in before]
    expected, actual = run(*before), torch.func.functionalize(run)(*other)
    assert_same_bits(actual, expected)
    torch.testing.assert_close(other, before)
    assert not torch.equal(other[1], problem_of(IMAGE, norm, True, torch.float32).running_mean)
