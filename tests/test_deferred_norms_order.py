"""A deferred result is that of the norm's call: its input, statistics, grad mode, and how often it counts."""

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from deferred import X, both
from norm_pairs import assert_same, assert_trains_like, calls_of, changed, outcome, pair
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_ext
from torch_ext import _norm_calls

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


# ---- Several calls of one norm, and what becomes of its module -------------------------------------


def test_an_older_call_that_is_used_later_does_not_hide_a_newer_one():
    plain, norm = pair()[0], changed(pair())[0]
    prelu = changed(pair())[1]
    first = norm(X)
    prelu(first)
    second = norm(X + 1)
    first + 0
    for x in (X, X + 1):
        plain(x)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    del second


def _deleted(norm):
    return norm


def _loaded(norm):
    norm.load_state_dict({name: t * 2 for name, t in norm.state_dict().items()})
    return norm


def _restored(norm):
    torch_ext.restore_prelu(norm)
    return norm


def _called_as_a_pair(norm):
    torch_ext.norm_prelu(norm, torch_ext.PReLU(dtype=X.dtype), X + 1)
    return norm


@pytest.mark.parametrize(
    "use",
    [_deleted, _loaded, _restored, _called_as_a_pair, copy.deepcopy, nn.Module.double],
    ids=lambda f: f.__name__.strip("_"),
)
def test_statistics_are_up_to_date_before_a_module_is_used_otherwise(use):
    """The result of its call is alive and was not used."""
    plain, norm = pair()[0], changed(pair())[0]
    z, _ = norm(X), plain(X)
    plain, norm = use(plain), use(norm)
    del z
    for name, expected in plain._buffers.items():
        torch.testing.assert_close(norm._buffers[name], expected)
    assert plain.running_mean.norm() > 0


def test_a_parameter_in_other_memory_is_an_error_and_the_error_comes_once():
    model = changed(pair())
    z = model[0](X)
    model[0].weight.data = model[0].weight.data * 2
    with pytest.raises(RuntimeError, match="a Parameter or a statistic of a norm was changed"):
        model[1](z)
    assert model(X).isfinite().all() and model.state_dict()


def test_a_frozen_norm_whose_result_cannot_be_computed_any_more_goes_on():
    model, x = changed(pair().eval()), X.clone()
    z = model[0](x)
    x.add_(1)
    assert model(X).isfinite().all()
    with pytest.raises(RuntimeError, match="the input of a norm was changed"):
        z + 0


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_a_program_does_not_record_an_earlier_call(strict):
    norm = changed(pair())[0]
    before, _ = norm.eval()(X), norm.train()
    program = torch.export.export(norm.eval(), (X,), strict=strict)
    called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert called == ["aten.batch_norm.default"]
    assert type(before + 0) is torch.Tensor
    torch.testing.assert_close(before, norm(X))


def test_a_result_that_is_deleted_under_a_mode_updates_the_statistics():
    plain, norm = pair()[0], changed(pair())[0]
    z, _ = norm(X), plain(X)
    with FakeTensorMode():
        del z
    torch.testing.assert_close(norm.running_mean, plain.running_mean)


def test_threads_that_share_a_model_do_not_disturb_one_another():
    model = changed(pair().eval())
    inputs = [X + i for i in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        start = threading.Barrier(len(inputs))

        def work(x):
            start.wait()
            with torch.no_grad():
                return [model(x) for _ in range(200)]

        with ThreadPoolExecutor(len(inputs)) as pool:
            made, results = calls_of(lambda: [*pool.map(work, inputs)])
    assert made == 8 * 200
    for one, other in zip(results, expected, strict=True):
        assert all(torch.equal(result, other) for result in one)


def test_threads_may_use_one_result():
    """Some compute with it, one gives it to the PReLU; each gets the right numbers, and statistics count once."""
    plain, model = pair(), changed(pair())
    z, expected = plain[0](X), plain(X)
    uses = (lambda z: z * 2, model[1], lambda z: z * 2, lambda z: z + 1)
    right = (z * 2, expected, z * 2, z + 1)
    for _ in range(60):
        fused = changed(pair())
        uses = (uses[0], fused[1], *uses[2:])
        start, result = threading.Barrier(len(uses)), fused[0](X)

        def work(use, start=start, result=result):
            start.wait()
            return use(result)

        with ThreadPoolExecutor(len(uses)) as pool:
            results = [*pool.map(work, uses)]
        for one, other in zip(results, right, strict=True):
            torch.testing.assert_close(one, other)
        assert fused[0].num_batches_tracked == 1
        torch.testing.assert_close(fused[0].running_mean, _once(plain[0]))


def _once(norm):
    """Its running mean after one call."""
    fresh = pair()[0]
    fresh(X)
    return fresh.running_mean


@pytest.mark.parametrize(
    "read", [lambda norm: norm.running_mean, lambda norm: norm.state_dict()["running_mean"]]
)
def test_statistics_of_a_call_in_another_thread_are_up_to_date(read):
    norm = changed(pair())[0]
    with ThreadPoolExecutor(1) as pool:
        z = pool.submit(norm, X).result()
    torch.testing.assert_close(read(norm), _once(norm))
    del z


@pytest.mark.parametrize("between", ["alone", "pair"])
def test_a_result_in_eval_mode_that_is_used_again_after_a_step_of_training(between):
    def forward(m, x):
        z = m.norm.eval()(x)
        first = m.prelu(z)
        with torch.no_grad():
            other = m.norm.train()(x * 3 + 1)
            if between == "pair":
                m.other(other)
        return first + z.detach().square()

    plain, fused = both(forward)
    with torch.no_grad():
        count, actual = calls_of(lambda: fused(X))
        torch.testing.assert_close(actual, plain(X))
    assert count == 1 + (between == "pair")


def test_a_result_that_nobody_uses_does_not_mind_a_step_of_the_optimizer():
    outcomes = []
    for model in (pair(), changed(pair())):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        unused = []
        for _ in range(3):
            unused.append(model[0](X * 2))
            optimizer.zero_grad()
            model(X).sum().backward()
            optimizer.step()
        outcomes.append(model.state_dict())
    assert_same(*reversed(outcomes))


def test_a_fused_operator_that_fails_leaves_the_statistics_to_be_updated(monkeypatch):
    model = changed(pair())
    z = model[0](X)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(_norm_calls, "batch_norm_prelu", _without_memory)
        model[1](z)
    del z
    torch.testing.assert_close(model[0].running_mean, _once(model[0]))


def _without_memory(*_):
    raise MemoryError
