"""Derivatives of norm + PReLU of every kind, what is kept for them, and what records the operators."""

import gc
import weakref

import pytest
import torch
from cases import channels_last
from norm_cases import BATCH, CASES, FUNCTIONS, INSTANCE, NormCase, problem_of
from reference import assert_same_bits

import torch_ext

pytestmark = pytest.mark.contract

SMALL = NormCase("small", (3, 4, 5, 2), (4,))
SMALL_CASES = (
    SMALL,
    NormCase("channels_last", (3, 4, 5, 2), (4,), channels_last),
    NormCase("one_slope", (3, 4, 5), ()),
    NormCase("no_affine", (3, 4, 5), (4,), affine=False),
)
both_modes = pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
both_norms = pytest.mark.parametrize("norm", FUNCTIONS)
small_cases = pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
IMAGE = CASES[0]


def function_of(problem, function=None):
    """A function of the tensors that are differentiable, with buffers of its own at each call."""
    names = [
        name for name in ("input", "slope", "weight", "bias") if getattr(problem, name) is not None
    ]

    def call(*tensors):
        fresh = problem.with_buffers()
        for name, tensor in zip(names, tensors, strict=True):
            setattr(fresh, name, tensor)
        return fresh.pytorch() if function == "pytorch" else fresh.run()

    return call


def away_from_the_kink(problem):
    """Finite differences must not cross it."""
    with torch.no_grad():
        fresh = problem.with_leaves()
        fresh.slope = torch.ones_like(fresh.slope)
        z = fresh.run()
    assert z.abs().min() > 1e-4 and (z > 0).any() and (z < 0).any()
    return problem


# ---- Order by order ----------------------------------------------------------------------------


@both_modes
@both_norms
@small_cases
def test_first_and_second_derivatives_equal_finite_differences(case, norm, training):
    problem = away_from_the_kink(problem_of(case, norm, training, torch.float64))
    leaves = problem.with_leaves().differentiable
    assert torch.autograd.gradcheck(function_of(problem), leaves)
    assert torch.autograd.gradcheck(
        function_of(problem), leaves, check_forward_ad=True, check_backward_ad=False
    )
    assert torch.autograd.gradgradcheck(function_of(problem), leaves)


@both_modes
@both_norms
@small_cases
def test_the_gradient_is_the_same_with_and_without_a_graph_of_it(case, norm, training):
    problem = problem_of(case, norm, training, torch.float64).with_leaves()
    output = problem.run()
    kernel = torch.autograd.grad(
        output, problem.differentiable, problem.grad_output, retain_graph=True
    )
    composite = torch.autograd.grad(
        output, problem.differentiable, problem.grad_output, create_graph=True
    )
    for actual, expected in zip(composite, kernel, strict=True):
        assert actual.requires_grad and not expected.requires_grad
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@both_modes
@both_norms
def test_forward_mode(norm, training):
    problem = problem_of(SMALL, norm, training, torch.float64)
    primals = tuple(problem.differentiable)
    tangents = tuple(
        torch.randn(t.shape, generator=torch.Generator().manual_seed(i), dtype=t.dtype)
        for i, t in enumerate(primals)
    )
    ours = torch.func.jvp(function_of(problem), primals, tangents)
    theirs = torch.func.jvp(function_of(problem, "pytorch"), primals, tangents)
    for pair in zip(ours, theirs, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)
        assert pair[0].abs().max() > 0


@both_modes
@both_norms
def test_vmap_and_grad(norm, training):
    """Of a batch of problems: parameters of each, one output of each."""
    problem = problem_of(SMALL, norm, training, torch.float64)
    problem.running_mean = None if training else problem.running_mean
    problem.running_var = None if training else problem.running_var
    tensors = [torch.stack([t, t * 0.5 + 0.1]) for t in problem.differentiable]

    def loss(*tensors):
        return (function_of(problem)(*tensors) * problem.grad_output).sum()

    order = tuple(range(len(tensors)))
    together = torch.func.vmap(torch.func.grad(loss, argnums=order))(*tensors)
    for i in range(2):
        each = problem.with_leaves()
        each.input, each.slope, each.weight, each.bias = (
            t[i].detach().requires_grad_() for t in tensors
        )
        expected = torch.autograd.grad(each.pytorch(), each.differentiable, each.grad_output)
        for actual, one in zip(together, expected, strict=True):
            torch.testing.assert_close(actual[i], one, rtol=1e-10, atol=1e-10)


# ---- What is kept ------------------------------------------------------------------------------


@both_modes
@both_norms
def test_one_tensor_of_the_inputs_size_is_saved(norm, training):
    problem = problem_of(IMAGE, norm, training, torch.float32).with_leaves()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        output = problem.run()
    large = [t for t in kept if t.numel() >= output.numel()]
    assert len(large) == 1 and large[0].data_ptr() == problem.input.data_ptr()
    per_channel = sum(t.numel() for t in kept if t.numel() < output.numel())
    statistics = 16 * (4 if norm == INSTANCE and training else 1)
    assert per_channel == 3 * 16 + 2 * statistics
    buffers = {problem.running_mean.data_ptr(), problem.running_var.data_ptr()}
    assert not buffers & {t.data_ptr() for t in kept}
    pytorch = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: pytorch.append(tensor) or tensor, lambda tensor: tensor
    ):
        problem.pytorch()
    assert sum(t.numel() >= output.numel() for t in pytorch) == 2


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


def test_an_input_that_changed_is_an_error():
    problem = problem_of(IMAGE, BATCH, True, torch.float32).with_leaves()
    problem.input = problem.input.clone()
    output = problem.run()
    problem.input.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


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


def internal_calls(norm, training, dtype=torch.float64):
    """Arguments of the internal operators as the function would call them."""
    p = problem_of(SMALL, norm, training, dtype).with_leaves()
    parameters = (p.input, p.slope, p.weight, p.bias)
    instance = norm == INSTANCE
    operators = torch.ops.torch_ext
    with torch.no_grad():
        _, mean, var = operators._norm_prelu(*parameters, p.eps, instance)
    if not training:
        mean, var = p.running_mean, p.running_var
        yield operators._norm_prelu_eval, (*parameters, mean, var, p.eps)
    else:
        yield operators._norm_prelu, (*parameters, p.eps, instance)
    yield (
        operators._norm_prelu_backward,
        (p.grad_output.requires_grad_(), *parameters, mean, var, p.eps, training, [True] * 4),
    )


@both_modes
@both_norms
@pytest.mark.filterwarnings("ignore")
def test_opcheck(norm, training):
    for operator, arguments in internal_calls(norm, training):
        torch.library.opcheck(operator, arguments)
    problem = problem_of(SMALL, norm, training, torch.float64).with_leaves()
    function = getattr(torch.ops.torch_ext, f"{norm}_norm_prelu")
    arguments = (
        *(problem.input, problem.slope, problem.running_mean, problem.running_var),
        *(problem.weight, problem.bias, training, problem.momentum, problem.eps),
    )
    torch.library.opcheck(
        function,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@both_modes
@both_norms
@pytest.mark.parametrize("dynamic", (False, True), ids=("static", "dynamic"))
def test_compile(norm, training, dynamic):
    """In one graph, with PyTorch's own gradients' recording; buffers too."""
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[norm], backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in (IMAGE.shape, (7, 16, 5, 6)):
        case = NormCase("compiled", shape, (16,), channels_last)
        problem = problem_of(case, norm, training, torch.float32)
        eager, traced = problem.with_leaves(), problem.with_leaves()
        outputs = eager.run(), traced.run(compiled)
        assert_same_bits(outputs[1], outputs[0])
        gradients = [
            torch.autograd.grad(output, p.differentiable, p.grad_output)
            for output, p in zip(outputs, (eager, traced))
        ]
        for pair in zip(*gradients, strict=True):
            assert_same_bits(*pair)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(traced, name), getattr(eager, name))
            assert torch.equal(getattr(problem, name), getattr(eager, name)) != training


@both_modes
@both_norms
def test_export(norm, training):
    class Layer(torch.nn.Module):
        def __init__(self, problem):
            super().__init__()
            self.register_buffer("running_mean", problem.running_mean.clone())
            self.register_buffer("running_var", problem.running_var.clone())
            self.slope = torch.nn.Parameter(problem.slope)

        def forward(self, input):
            return FUNCTIONS[norm](
                input, self.slope, self.running_mean, self.running_var, None, None, training
            )

    problem = problem_of(IMAGE, norm, training, torch.float32)
    program = torch.export.export(Layer(problem), (problem.input,)).run_decompositions({})
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    internal = "_norm_prelu" if training else "_norm_prelu_eval"
    assert f"torch_ext.{internal}.default" in names
    eager, exported = Layer(problem), program.module()
    assert_same_bits(exported(problem.input), eager(problem.input))
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(getattr(exported, name), buffer)
        assert torch.equal(buffer, getattr(problem, name)) != training


@both_norms
def test_meta_tensors_and_inference_mode(norm, dtypes):
    problem = problem_of(CASES[1], norm, True, *dtypes)
    output = problem.run()
    tensors = [t if t is None else t.to("meta") for t in (problem.input, problem.slope)]
    on_meta = FUNCTIONS[norm](*tensors, None, None, None, None, True)
    assert (on_meta.shape, on_meta.dtype, on_meta.stride()) == (
        output.shape,
        output.dtype,
        output.stride(),
    )
    with torch.inference_mode():
        assert_same_bits(problem_of(CASES[1], norm, True, *dtypes).run(), output)


def test_torchscript():
    def layer(input: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return torch.ops.torch_ext.batch_norm_prelu(input, slope, None, None, training=True)

    problem = problem_of(IMAGE, BATCH, True, torch.float32)
    scripted = torch.jit.script(layer)
    assert_same_bits(scripted(problem.input, problem.slope), layer(problem.input, problem.slope))


# ---- Mixed precision ---------------------------------------------------------------------------


@both_modes
@both_norms
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16))
def test_autocast_gives_the_dtype_of_the_pair(norm, training, dtype, autocast_dtype):
    parameters = torch.float32 if dtype != torch.float64 else dtype
    ours = problem_of(IMAGE, norm, training, dtype, parameters).with_leaves()
    theirs = ours.with_leaves()
    with torch.autocast("cpu", autocast_dtype):
        outputs = ours.run(), theirs.pytorch()
    assert outputs[0].dtype == outputs[1].dtype
    assert outputs[0].dtype == (dtype if dtype == torch.float64 else autocast_dtype)
    eps = torch.finfo(outputs[0].dtype).eps if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(*outputs, rtol=4 * eps, atol=8 * eps)
    gradients = [
        torch.autograd.grad(output.double().sum(), p.differentiable)
        for output, p in zip(outputs, (ours, theirs))
    ]
    for tensor, gradient in zip(ours.differentiable, gradients[0], strict=True):
        assert gradient.dtype == tensor.dtype and gradient.abs().max() > 0
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=0.05, atol=1)


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


def test_the_functions_are_public():
    assert {"batch_norm_prelu", "instance_norm_prelu"} <= set(torch_ext.__all__)
