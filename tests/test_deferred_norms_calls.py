"""Several calls of one norm, calls from several threads, and what becomes of the module meanwhile."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from deferred import X, both
from norm_pairs import assert_same, calls_of, changed, pair
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_ext
from torch_ext import _norm_calls

pytestmark = pytest.mark.contract


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
