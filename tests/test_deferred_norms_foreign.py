"""The result of a changed norm and code that is not PyTorch's: right, or an error that names the remedy."""

import copy
import weakref

import pytest
import torch
from deferred import X, both, result
from norm_pairs import assert_trains_like, calls_of, changed, pair
from recorder import Recorder
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import torch_ext

pytestmark = pytest.mark.contract


# ---- What does not come through Python -------------------------------------------------------------


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("function", [Identity, Square])
def test_an_autograd_function_is_an_error_that_names_the_remedy(function):
    model, fused = both(lambda m, x: function.apply(m.norm(x)))
    with pytest.raises(RuntimeError, match="filter_fn"):
        fused(X)
    again = copy.deepcopy(model)
    report = torch_ext.fuse_norm_prelu(again, X)
    assert ("norm", "no PReLU got its result") in report.skipped
    assert_trains_like(model, again, X, fused_in_a_step=0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_autograd_function_with_the_pair_inside(training):
    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, norm, prelu):
            z = norm(x)
            ctx.mark_non_differentiable()
            return z, prelu(norm(x))

        @staticmethod
        def backward(ctx, first, second):
            return first + second, None, None

    def forward(m, x):
        first, second = Inside.apply(x, m.norm, m.prelu)
        return m.other(first) + second

    assert_trains_like(*both(forward, training), X, fused_in_a_step=0)


def test_an_operator_of_another_extension_gets_a_tensor():
    with torch.library._scoped_library("somebodys", "FRAGMENT") as library:
        library.define("shift(Tensor[] parts, Tensor? more) -> Tensor")
        library.impl("shift", lambda parts, more: parts[0] + more, "CompositeImplicitAutograd")
        shift = torch.ops.somebodys.shift
        model, fused = both(lambda m, x: m.prelu(shift([m.norm(x)], x)))
        assert_trains_like(model, fused, X, fused_in_a_step=0)
        model, fused = both(lambda m, x: m.prelu(shift.default([x], m.norm(x))))
        assert_trains_like(model, fused, X, fused_in_a_step=0)


def test_code_that_bypasses_python_is_an_error_that_names_the_remedy():
    z, _ = result()
    with pytest.raises(RuntimeError, match="filter_fn"), torch._C.DisableTorchFunctionSubclass():
        z + 1


def test_a_custom_op_of_python_gets_a_tensor():
    @torch.library.custom_op("somebodys::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        assert type(x) is torch.Tensor
        return x * 2

    with torch.no_grad():
        model, fused = both(lambda m, x: m.prelu(double(m.norm(x))))
        torch.testing.assert_close(fused(X), model(X))


def test_another_subclass_of_tensor_takes_part():
    class Other(torch.Tensor):
        pass

    model, fused = both(lambda m, x: m.prelu(x.as_subclass(Other) + m.norm(x)))
    y = fused(X)
    assert type(y) is Other
    torch.testing.assert_close(y, model(X))
    made, y = calls_of(lambda: changed(pair())(X.as_subclass(Other)))
    assert made == 0
    assert type(y) is Other


def test_a_mode_sees_ordinary_calls():
    class Notes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model, fused = both(lambda m, x: m.prelu(m.norm(x)))
    with Notes():
        assert_trains_like(model, fused, X)
    with torch.device("cpu"):
        assert_trains_like(model, fused, X)


def test_a_dispatch_mode_sees_the_operators_of_both():
    model, fused = both(lambda m, x: m.prelu(m.norm(x)))
    torch_ext.replace_prelu(model)
    runs = []
    for each in (model, fused):
        with Recorder() as recorder:
            made, _ = calls_of(lambda each=each: each(X))
        runs.append(recorder.seen)
        assert made == 0
    assert runs[0] == runs[1]
    assert any("batch_norm" in str(operator) for operator in runs[0])


@pytest.mark.parametrize("function", [Identity, Square])
def test_a_result_that_was_used_before_is_an_ordinary_tensor_for_an_autograd_function(function):
    def forward(m, x):
        z = m.norm(x)
        assert z.is_cpu
        return m.prelu(z) + function.apply(z)

    assert_trains_like(*both(forward), X, fused_in_a_step=0)


@pytest.mark.parametrize("hooked", ["first", "last"])
def test_a_full_backward_hook_of_a_module_around_one_of_the_two(hooked):
    def model(change):
        parts = nn.Sequential(pair()[:1], pair()[1:])
        parts = changed(parts) if change else parts
        parts[0 if hooked == "first" else -1].register_full_backward_hook(
            lambda module, grads, outputs: seen.append(outputs[0].norm())
        )
        return parts

    seen = []
    assert_trains_like(model(False), model(True), X, fused_in_a_step=0)
    assert len(seen) == 4
    torch.testing.assert_close(seen[2:], seen[:2])


def _as_data_of_another(z):
    other = torch.zeros_like(X)
    other.data = z
    return other.sum()


@pytest.mark.parametrize("use", [_as_data_of_another, torch.utils.dlpack.to_dlpack])
def test_memory_that_is_not_there_is_an_error(use):
    z, _ = result()
    with pytest.raises((RuntimeError, BufferError)):
        use(z)


def test_an_input_is_not_kept_once_the_result_was_used():
    norm, x = changed(pair())[0], X.clone()
    kept = weakref.ref(x)
    with torch.no_grad():
        z = norm(x)
        z + 0
        del x
        assert kept() is None and z.norm() > 0


class StraightThrough(torch.autograd.Function):
    """Does not look at what gets the gradient."""

    @staticmethod
    def forward(ctx, hard, soft):
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx, grad):
        return None, grad


def test_a_function_that_hands_a_result_on_without_looking_loses_no_gradient():
    def forward(m, x):
        soft = m.norm(x)
        return m.prelu(StraightThrough.apply(torch.ones_like(X), soft))

    model, fused = both(forward)
    with pytest.raises(
        RuntimeError, match="gradient would be lost: leave this norm out by filter_fn"
    ):
        fused(X).sum().backward()
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(changed(model)(X), model(X))


ASKED = {
    "register_hook": lambda z, y: z.register_hook(lambda grad: None),
    "retain_grad": lambda z, y: z.retain_grad(),
    "autograd.grad": lambda z, y: torch.autograd.grad(y.sum(), z),
    "backward": lambda z, y: torch.autograd.backward(y.sum(), inputs=[z]),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_the_gradient_of_a_result_after_its_prelu_is_an_error_and_before_it_is_right(ask):
    model = changed(pair())
    z = model[0](X)
    y = model[1](z)
    with pytest.raises(RuntimeError, match="was asked for after a PReLU had used it"):
        ask(z, y)
    z = model[0](X)
    z.retain_grad()
    count, y = calls_of(lambda: model[1](z))
    ask(z, y)
    assert count == 0 and z.requires_grad


def test_a_result_has_the_dtype_of_the_input_for_whoever_does_not_compute_it():
    norm = changed(pair().bfloat16())[0]
    with torch.no_grad(), pytest.raises(RuntimeError, match="filter_fn"):
        torch.as_tensor(norm(X.bfloat16()), dtype=torch.float32)


def test_a_graph_above_autograd_has_the_norm():
    norm = changed(pair().eval())[0]
    with torch.no_grad():
        graph = make_fx(lambda x: norm(x) + 1, pre_dispatch=True)(X).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.batch_norm.default", "aten.add.Tensor"]
