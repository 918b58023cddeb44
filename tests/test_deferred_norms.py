"""Whatever a model does with the result of a changed norm is right, or an error that says what to do."""

import copy
import gc
import operator
import pickle

import numpy as np
import pytest
import torch
from norm_pairs import (
    assert_same,
    assert_trains_like,
    calls_of,
    changed,
    outcome,
    pair,
    randomized,
    sample,
)
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree

import torch_ext

pytestmark = pytest.mark.contract

X = sample(2, 8, 4, 4)
ONES = torch.ones(2, 8, 4, 4, dtype=torch.float64)


class Model(nn.Module):
    """A norm, a PReLU, and a forward that is given."""

    def __init__(self, forward):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.other = nn.PReLU(8)
        self.flag = True
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def both(forward, training=True):
    model = randomized(Model(forward)).train(training)
    return model, changed(model)


# ---- Ordinary uses -------------------------------------------------------------------------------


def add_in_place(m, x):
    z = m.norm(x)
    z.add_(1)
    return m.prelu(z)


def augmented(m, x):
    z = m.norm(x)
    z += 1
    z *= ONES
    return m.prelu(z)


def written_to(m, x):
    z = m.norm(x)
    z[:, 0] = 2.0
    return m.prelu(z)


def written_into_another(m, x):
    target = torch.zeros_like(ONES)
    target[:, :4] = m.norm(x)[:, :4]
    target.copy_(target + m.norm(x))
    return m.prelu(target)


def masked(m, x):
    z = m.norm(x)
    return m.prelu(torch.where(z > 0, z, ONES))


def branches_on_values(m, x):
    z = m.norm(x)
    return m.prelu(z) if z.mean() > 100 else m.other(z)


def dictionary(m, x):
    return m.prelu(_pytree.tree_map(lambda t: t * 2, {"z": [m.norm(x)]})["z"][0])


def through_a_function(m, x):
    return torch_ext.prelu(m.norm(x), m.prelu.weight)


def used_twice(m, x):
    z = m.norm(x)
    return m.prelu(z) + z


def two_prelus(m, x):
    z = m.norm(x)
    return m.prelu(z) * m.other(z)


UNFUSED = {
    "changed in place": add_in_place,
    "augmented assignments": augmented,
    "written to": written_to,
    "written into another": written_into_another,
    "viewed": lambda m, x: m.prelu(m.norm(x).view(2, 8, 16)),
    "sliced": lambda m, x: m.prelu(m.norm(x)[:, :, :2]),
    "transposed": lambda m, x: m.prelu(m.norm(x).mT),
    "concatenated": lambda m, x: m.prelu(torch.cat([m.norm(x), ONES])),
    "stacked out of a tuple": lambda m, x: m.prelu(torch.stack((m.norm(x), ONES)).sum(0)),
    "added to": lambda m, x: m.prelu(m.norm(x) + x),
    "added from the left": lambda m, x: m.prelu(ONES + m.norm(x)),
    "subtracted from a number": lambda m, x: m.prelu(1 - m.norm(x)),
    "power": lambda m, x: m.prelu(m.norm(x) ** 2),
    "matrix product": lambda m, x: m.prelu(m.norm(x) @ x),
    "compared": masked,
    "branched on": branches_on_values,
    "cast": lambda m, x: m.prelu(m.norm(x).to(torch.float64) * 1),
    "cloned": lambda m, x: m.prelu(m.norm(x).clone()),
    "detached": lambda m, x: m.prelu(m.norm(x).detach()),
    "in a dictionary": dictionary,
    "returned": lambda m, x: m.norm(x),
    "twice through the norm": lambda m, x: m.norm(m.norm(x)),
    "functional PReLU": lambda m, x: F.prelu(m.norm(x), m.prelu.weight),
    "our function": through_a_function,
    "our operator": lambda m, x: torch.ops.torch_ext.prelu(m.norm(x), m.prelu.weight),
    "as a keyword": lambda m, x: m.prelu(input=m.norm(x)),
    "another module": lambda m, x: F.gelu(m.norm(x)),
    "active dropout of everything": lambda m, x: m.prelu(F.dropout(m.norm(x), 1.0, True)) + x,
    "unpacked": lambda m, x: torch.stack([m.prelu(each[None]) for each in m.norm(x)]),
    "iterated": lambda m, x: m.prelu(torch.stack(list(m.norm(x)))),
    "einsum": lambda m, x: m.prelu(torch.einsum("nchw->nchw", m.norm(x)) * 1),
    "checked": lambda m, x: m.prelu(m.norm(x)) if operator.truth(m.norm(x).any()) else x,
}
FUSED = {
    "plain": lambda m, x: m.prelu(m.norm(x)),
    "with shape": lambda m, x: m.prelu(m.norm(x)).view(m.norm(x).shape[0], -1),
    "dropout of nothing": lambda m, x: m.prelu(F.dropout(m.norm(x), 0.0)),
    "dropout in eval": lambda m, x: m.prelu(F.dropout2d(m.norm(x), 0.5, False)),
    "attribute": lambda m, x: m.prelu(m.norm(x)) if m.flag else m.norm(x),
    "isinstance": lambda m, x: m.prelu(m.norm(x)) if isinstance(m.norm(x), torch.Tensor) else x,
    "training flag": lambda m, x: m.prelu(m.norm(x)) if m.training else m.other(m.norm(x)),
    "used twice": used_twice,
    "two PReLUs": two_prelus,
    "the shared norm": lambda m, x: m.prelu(m.norm(x)) * m.other(m.norm(x * 2)),
    "the shared PReLU": lambda m, x: m.prelu(m.prelu(m.norm(x)) + m.norm(x * 2)),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("forward", UNFUSED.values(), ids=UNFUSED.keys())
def test_any_other_use_gets_what_the_norm_returns(forward, training):
    model, fused = both(forward, training)
    expected = outcome(model, X)
    made, actual = calls_of(lambda: outcome(fused, X))
    assert made == (2 if forward is UNFUSED["checked"] else 0)
    assert_same(actual, expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("forward", FUSED.values(), ids=FUSED.keys())
def test_uses_that_leave_the_pair_together(forward, training):
    model, fused = both(forward, training)
    expected = outcome(model, X)
    made, actual = calls_of(lambda: outcome(fused, X))
    assert made == (4 if forward is FUSED["the shared norm"] else 2)
    assert_same(actual, expected)


def result(training=True):
    """A changed norm's result, not used yet, and the norm's own."""
    plain, fused = pair().train(training), changed(pair().train(training))
    return fused[0](X), plain[0](X)


LOOKS = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "numpy": lambda z: z.detach().numpy().tolist(),
    "asarray": lambda z: np.asarray(z.detach()).tolist(),
    "tolist": lambda z: z.tolist(),
    "len": len,
    "item": lambda z: z.sum().item(),
    "float": lambda z: float(z.sum()),
    "bool": lambda z: bool((z > 0).all()),
    "dtype": lambda z: (z.dtype, z.device, z.layout, z.requires_grad, z.is_leaf, z.is_contiguous()),
    "shape": lambda z: (z.shape, z.size(), z.size(1), z.size(dim=-1), z.dim(), z.ndim, z.numel()),
    "grad_fn": lambda z: type(z.grad_fn).__name__,
    "is_tensor": lambda z: (torch.is_tensor(z), isinstance(z, torch.Tensor)),
    "pickle": lambda z: pickle.loads(pickle.dumps(z.detach())).tolist(),
    "deepcopy": lambda z: copy.deepcopy(z.detach()).tolist(),
    "contains": lambda z: 0.5 in z,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_to_look_at_it_is_to_look_at_a_tensor(look):
    actual, expected = result()
    assert look(actual) == look(expected)
    assert type(actual + 0) is torch.Tensor


def test_a_result_is_one_tensor_whatever_is_asked_of_it():
    z, _ = result()
    assert z.grad_fn is z.grad_fn
    z.retain_grad()
    z.register_hook(lambda grad: grad * 2)
    (z.sum() + z[0].sum()).backward()
    assert z.grad is not None
    assert (z.grad != 0).all()


def test_backward_may_start_at_it():
    z, expected = result()
    model = changed(pair())
    model[0](X.requires_grad_(False)).sum().backward()
    assert model[0].bias.grad is not None
    assert torch.equal(z.detach(), expected.detach())


def test_an_attribute_set_on_it_stays():
    z, _ = result()
    z.origin = "norm"
    z.sum()
    assert z.origin == "norm"


# ---- What it depends on changes meanwhile ----------------------------------------------------------


def input_changed(m, x):
    x = x.clone()
    z = m.norm(x)
    x.add_(1)
    return m.prelu(z)


def view_of_the_input_changed(m, x):
    x = x.clone()
    z = m.norm(x)
    x[0].zero_()
    return m.prelu(z)


def weight_changed(m, x):
    z = m.norm(x)
    with torch.no_grad():
        m.norm.weight.mul_(2)
    return m.prelu(z)


@pytest.mark.parametrize(
    "forward", [input_changed, view_of_the_input_changed, weight_changed], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("use", ["PReLU", "another"])
def test_a_change_in_place_before_the_first_use_is_an_error(forward, use):
    _, fused = both(forward)
    if use == "another":
        torch_ext.restore_prelu(fused.prelu)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="was changed in place before its result"),
    ):
        fused(X)


def test_statistics_of_a_frozen_norm_changed_before_the_first_use_are_an_error():
    model = changed(pair().eval())
    z = model[0](X)
    model[0].running_mean.add_(1)
    with pytest.raises(
        RuntimeError, match="a Parameter or a statistic of a norm was changed in place"
    ):
        model[1](z)


def test_a_change_after_the_first_use_is_as_ever():
    def forward(m, x):
        x = x.clone()
        y = m.prelu(m.norm(x))
        with torch.no_grad():
            y = y.clone()
            x.add_(1)
        return y

    model, fused = both(forward)
    made, y = calls_of(lambda: fused(X))
    assert made == 1
    torch.testing.assert_close(y, model(X))


def test_modes_and_settings_are_those_of_the_norms_call():
    def forward(m, x):
        z = m.norm(x)
        m.norm.eval()
        m.norm.momentum = 0.9
        y = m.prelu(z)
        m.norm.train()
        m.norm.momentum = 0.1
        return y

    assert_trains_like(*both(forward), X)


# ---- Running statistics ----------------------------------------------------------------------------


def seen_statistics(m, x):
    z = m.norm(x)
    m.seen = [m.norm.running_mean.clone(), m.norm.num_batches_tracked.clone()]
    return m.prelu(z)


def seen_state(m, x):
    z = m.norm(x)
    m.seen = [value.clone() for value in m.state_dict().values()]
    return m.prelu(z)


def unused(m, x):
    m.norm(x)
    return m.other(x)


def unused_in_the_end(m, x):
    z = m.norm(x)
    y = m.other(x)
    del z
    return y


def in_another_order(m, x):
    first, second = m.norm(x), m.norm(x * 3)
    return m.prelu(second) + m.other(first)


def raising(m, x):
    m.norm(x)
    raise KeyError


@pytest.mark.parametrize(
    "forward",
    [seen_statistics, seen_state, unused, unused_in_the_end, in_another_order],
    ids=lambda f: f.__name__,
)
def test_statistics_are_updated_once_and_before_they_are_seen(forward):
    model, fused = both(forward)
    assert_same(outcome(fused, X, steps=3), outcome(model, X, steps=3))
    seen = getattr(fused, "seen", [])
    assert all(torch.equal(mine, other) for mine, other in zip(seen, getattr(model, "seen", [])))
    assert bool(seen) is forward.__name__.startswith("seen")


def test_statistics_are_updated_although_the_forward_fails():
    model, fused = both(raising)
    for each in (model, fused):
        with pytest.raises(KeyError):
            each(X)
    gc.collect()
    assert_same(dict(fused.named_buffers()), dict(model.named_buffers()))


def test_a_result_that_is_deleted_after_its_input_was_changed_warns():
    _, fused = both(unused)
    x = X.clone()
    z = fused.norm(x)
    x.add_(1)
    with pytest.warns(UserWarning, match="running statistics were not updated"):
        del z


def test_reset_statistics_come_after_the_call():
    def forward(m, x):
        z = m.norm(x)
        m.norm.reset_running_stats()
        return m.prelu(z)

    model, fused = both(forward)
    assert_same(dict(fused.state_dict()), dict(model.state_dict()))
    fused(X), model(X)
    assert_same(dict(fused.state_dict()), dict(model.state_dict()))
    assert fused.norm.running_mean.eq(0).all()


# ---- Grad mode, autocast ---------------------------------------------------------------------------


def norm_without_grad(m, x):
    with torch.no_grad():
        z = m.norm(x)
    return m.prelu(z)


def prelu_without_grad(m, x):
    z = m.norm(x)
    with torch.no_grad():
        y = m.prelu(z)
    return y + z


def mean_without_grad(m, x):
    z = m.norm(x)
    with torch.no_grad():
        shift = z.mean()
    return m.prelu(z - shift)


def grad_within(m, x):
    with torch.no_grad():
        z = m.norm(x)
        with torch.enable_grad():
            return m.prelu(z)


def prelu_in_inference_mode(m, x):
    z = m.norm(x)
    with torch.inference_mode():
        shift = m.prelu(z).mean().item()
    return z + shift


@pytest.mark.parametrize(
    "forward",
    [
        norm_without_grad,
        prelu_without_grad,
        mean_without_grad,
        grad_within,
        prelu_in_inference_mode,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_grad_mode_around_one_of_the_two(forward, training):
    assert_trains_like(*both(forward, training), X, fused_in_a_step=0)


def norm_under_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        z = m.norm(x)
    return m.prelu(z)


def prelu_under_autocast(m, x):
    z = m.norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        return m.prelu(z)


def both_under_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.prelu(m.norm(x))


@pytest.mark.parametrize(
    "forward",
    [norm_under_autocast, prelu_under_autocast, both_under_autocast],
    ids=lambda f: f.__name__,
)
def test_autocast_around_one_of_the_two(forward):
    model, fused = (each.float() for each in both(forward))
    torch_ext.replace_prelu(model)  # PyTorch's would round the slopes, too
    x = X.float()
    expected, actual = model(x), fused(x)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
    assert (expected < 0).any()


def test_no_grad_is_fused_and_inference_mode_is_right():
    model, fused = both(FUSED["plain"], training=False)
    for mode, fusions in ((torch.no_grad, 1), (torch.inference_mode, 0)):
        with mode():
            made, y = calls_of(lambda: fused(X))
            assert made == fusions
            assert torch.is_inference(y) is (mode is torch.inference_mode)
            torch.testing.assert_close(y, model(X))


def test_inference_tensors_outside_of_their_mode():
    with torch.inference_mode():
        x = X.clone()
    model, fused = both(FUSED["plain"], training=False)
    with torch.no_grad():
        made, y = calls_of(lambda: fused(x))
        torch.testing.assert_close(y, model(x))
    assert made == 0


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

    model, fused = both(FUSED["plain"])
    with Notes():
        assert_trains_like(model, fused, X)
    with torch.device("cpu"):
        assert_trains_like(model, fused, X)
