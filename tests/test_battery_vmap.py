"""vmap: one call over a batch of data, of parameters or of both equals a loop, and PyTorch's."""

import itertools
import warnings

import pytest
import torch
from batteries import DTYPES, battery, each, first_setting, naming
from cases import Case
from operator_rows import Role
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import leaves_of, wanted
from torch.func import vmap
from transforms import no_vmap_fallback

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def _fallback_is_an_error():
    with no_vmap_fallback():
        yield


def test_the_guard_against_the_fallback_sees_one():
    # (Scoped: what torch.ops remembers of a library that is gone would fail torch.export later on.)
    with torch.library._scoped_library("torch_ext_test", "DEF") as library:
        library.define("without_batching_rule(Tensor input) -> Tensor")
        library.impl("without_batching_rule", torch.clone, "CompositeExplicitAutograd")
        with pytest.raises(RuntimeError, match="vmap fallback which is currently disabled"):
            vmap(torch.ops.torch_ext_test.without_batching_rule)(torch.ones(3, 2))


# The shapes of a sample and of its slopes, and where the batch is in data and in parameters.
VMAPS = {
    "input": ((2, 3, 4), (3,), 0, None),
    "input_last": ((2, 3, 4), (3,), -1, None),
    "input_dim_1": ((2, 3), (3,), 1, None),
    "input_shared_weight": ((2, 3), (1,), 0, None),
    "input_0d_weight": ((2, 3), (), 0, None),
    "vectors": ((7,), (1,), 0, None),
    "scalars": ((), (), 0, None),
    "weight": ((4, 3, 5), (3,), None, 0),
    "weight_last": ((4, 3, 5), (3,), None, 1),
    "weight_of_one": ((4, 3), (1,), None, 0),
    "weight_0d": ((4, 3, 2), (), None, 0),
    "both": ((4, 3), (3,), 0, 0),
    "both_other_dims": ((4, 3), (3,), 2, 1),
    "both_0d": ((), (), 0, 0),
    "both_samples_are_vectors": ((7,), (1,), 0, 0),
    "batch_as_large_as_channels": ((3, 3, 3), (3,), 0, 1),
}


def _vmaps(operator):
    return {name: how for name, how in VMAPS.items() if operator.takes(Case("vmap", *how[:2]))}


def _samples(operator, shape, slopes, dtypes, device, dyadic, count):
    case = Case("vmap", shape, slopes)
    every = [operator.make(case, dtypes, device, seed=10 * i, dyadic=dyadic) for i in range(count)]
    for i, arguments in enumerate(every[1:], 1):  # other parameters for each sample, too
        for argument, tensor in zip(operator.arguments, arguments, strict=True):
            if argument.role is not Role.DATA:
                tensor.mul_((-1.0) ** i * 2.0 ** (i % 2) if argument.signed else 4.0 ** (i % 2))
        if not shape and i % 2:  # a scalar cannot hold both signs
            arguments[operator.place("input")].neg_()
    return every


def _in_dims(operator, dim, parameter_dim):
    return tuple(dim if a.role is Role.DATA else parameter_dim for a in operator.arguments)


def _batched(samples, in_dims):
    """The arguments for vmap; and those of each sample, where what has no batch is the first one's."""
    columns = list(zip(*samples))
    whole = [c[0] if d is None else torch.stack(c, d) for c, d in zip(columns, in_dims)]
    loop = [
        [columns[at][0] if d is None else one for at, (d, one) in enumerate(zip(in_dims, sample))]
        for sample in samples
    ]
    return whole, loop


def _function(operator, call=None):
    setting = first_setting(operator)
    return lambda *tensors: tuple(operator.derivable((call or operator)(*tensors, **setting)))


def _assert_equal(operator, mapped, looped, dyadic):
    """Sums of samples may be added in another order: they are compared where they are exact."""
    results = [result for result in operator.results if not result.statistic]
    for result, one, others in zip(results, mapped, zip(*looped), strict=True):
        assert one.dtype == others[0].dtype
        if result.role is Role.DATA and operator.graph_keeps_bits:
            assert_same_bits(one, torch.stack(others))
        elif dyadic:
            operator.assert_derivatives([one], [torch.stack(others)])
        elif not operator.graph_keeps_bits:
            operator.assert_near([one], [torch.stack(others)])


def _values(operator):
    """Sums of samples are compared where they are exact."""
    exact = {} if all(r.role is Role.DATA for r in operator.results) else {"exact": True}
    return {"random": False} | exact


@battery(dtypes=DTYPES, how=_vmaps, dyadic=_values)
def test_vmap_equals_a_loop_and_pytorchs(operator, dtypes, how, dyadic, device):
    shape, slopes, *dims = how
    in_dims = _in_dims(operator, *dims)
    samples = _samples(
        operator, shape, slopes, dtypes, device, dyadic, 3 if len(shape) == 3 else 20
    )
    whole, loop = _batched(samples, in_dims)
    mapped = vmap(_function(operator), in_dims=in_dims)(*whole)
    if whole[operator.place("input")].numel() >= 16:
        assert_both_branches(whole[operator.place("input")], *mapped)
    _assert_equal(operator, mapped, [_function(operator)(*each) for each in loop], dyadic)
    if operator.same_as_pytorch and dtypes[0] == dtypes[1] and operator.data == ["input"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about a resized output
            pytorchs = vmap(_function(operator, operator.as_pytorch), in_dims=in_dims)(*whole)
        for one, other in zip(mapped, pytorchs, strict=True):
            assert_same_bits(one, other)


@battery(inner=each(("data", "parameters", "both", "both_elsewhere")))
def test_nested_vmaps_equal_two_loops(operator, inner, device):
    """Over data, parameters or both, inside and outside, at other dimensions than the first too."""
    dims = {"data": (0, None), "parameters": (None, 0), "both": (0, 0), "both_elsewhere": (2, 1)}
    double = (torch.float64, torch.float64)
    inner_dims = _in_dims(operator, *dims[inner])
    for outer in ((0, None), (None, 0), (0, 0), (1, 1)):
        outer_dims = _in_dims(operator, *outer)
        pairs = [_samples(operator, (4, 3, 2), (3,), double, device, True, 4)[i::2] for i in (0, 1)]
        inners = [_batched(pair, inner_dims)[0] for pair in pairs]
        whole, outer_loop = _batched(inners, outer_dims)
        mapped = vmap(vmap(_function(operator), in_dims=inner_dims), in_dims=outer_dims)(*whole)
        looped = []
        for arguments in outer_loop:
            each_inner = []
            for j in range(2):
                chosen = [t if d is None else t.select(d, j) for t, d in zip(arguments, inner_dims)]
                each_inner.append(_function(operator)(*chosen))
            looped.append([torch.stack(results) for results in zip(*each_inner)])
        with naming(outer=outer):
            assert_both_branches(torch.stack([p[0][operator.place("input")] for p in pairs]))
            _assert_equal(operator, mapped, looped, dyadic=True)


@battery()
def test_options_of_vmap_change_nothing(operator, device):
    """Chunks, a dimension for the results, a mode for random numbers, of which there are none."""
    in_dims = _in_dims(operator, 0, None)
    double = (torch.float64, torch.float64)
    samples = _samples(operator, (4, 3, 2), (3,), double, device, True, 5)
    whole, _ = _batched(samples, in_dims)
    expected = vmap(_function(operator), in_dims=in_dims)(*whole)
    options = [{"chunk_size": size} for size in (1, 2, 5, 7)]
    options += [{"randomness": mode} for mode in ("error", "different", "same")]
    for option in (*options, {"out_dims": -1}):
        results = vmap(_function(operator), in_dims=in_dims, **option)(*whole)
        for one, other in zip(results, expected, strict=True):
            assert_same_bits(one, other.movedim(0, -1) if "out_dims" in option else other)


@battery()
def test_gradients_flow_through_vmap(operator, device):
    """From outside, by ordinary backward: one graph for the whole batch."""
    double = (torch.float64, torch.float64)
    for dims in itertools.product((0, None), repeat=2):
        in_dims = _in_dims(operator, *dims)
        if set(in_dims) == {None}:
            continue
        samples = _samples(operator, (4, 3, 2), (3,), double, device, True, 3)
        whole, _ = _batched(samples, in_dims)

        def gradients(call, whole=whole, in_dims=in_dims):
            leaves = leaves_of(operator, whole)
            results = vmap(_function(operator, call), in_dims=in_dims)(*leaves)
            loss = sum(result.square().sum() for result in results)
            return torch.autograd.grad(loss, wanted(leaves))

        actual = gradients(None)
        assert all(gradient.any() for gradient in actual)
        operator.assert_derivatives(actual, gradients(operator.define))
