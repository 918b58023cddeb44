"""A deferred result is that of the norm's call: its input, statistics, grad mode, and how often it counts."""

import gc

import pytest
import torch
from deferred import X, both
from norm_pairs import assert_same, assert_trains_like, calls_of, changed, outcome, pair

import torch_ext

pytestmark = pytest.mark.contract


def plain(m, x):
    return m.prelu(m.norm(x))


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


def training_between(m, x):
    m.norm.eval()
    z = m.norm(x)
    m.norm.train()
    y = m.other(m.norm(x * 3))
    return m.prelu(z) + y


def raising(m, x):
    m.norm(x)
    raise KeyError


@pytest.mark.parametrize(
    "forward",
    [seen_statistics, seen_state, unused, unused_in_the_end, in_another_order, training_between],
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
    model, fused = both(plain, training=False)
    for mode, fusions in ((torch.no_grad, 1), (torch.inference_mode, 0)):
        with mode():
            made, y = calls_of(lambda: fused(X))
            assert made == fusions
            assert torch.is_inference(y) is (mode is torch.inference_mode)
            torch.testing.assert_close(y, model(X))


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model, fused = both(plain, training=False)
    with torch.no_grad():
        torch.testing.assert_close(fused(X), model(X))
        torch.testing.assert_close(fused(X), model(X))
    with torch.inference_mode():
        assert_same(dict(enumerate([fused.train()(X)])), dict(enumerate([model.train()(X)])))
    assert_same(dict(fused.named_buffers()), dict(model.named_buffers()))


def test_inference_tensors_outside_of_their_mode():
    with torch.inference_mode():
        x = X.clone()
    model, fused = both(plain, training=False)
    with torch.no_grad():
        made, y = calls_of(lambda: fused(x))
        torch.testing.assert_close(y, model(x))
    assert made == 0
