"""Where elements lie in memory changes nothing but where results lie; and empty tensors have no elements."""

import itertools

import cases
import pytest
import torch
from batteries import (
    CASES,
    DTYPES,
    EMPTY_CASES,
    LARGEST_AND_SMALLEST,
    battery,
    each,
    first_setting,
    naming,
)
from cases import (
    DENSE_LAYOUTS,
    LAYOUTS,
    SHARING_LAYOUTS,
    Case,
    case_inputs,
    channels_last,
    contiguous,
    expanded,
    offset,
    significant_strides,
    single_value,
    step_2,
)
from operator_rows import Role
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import present

pytestmark = pytest.mark.contract

INPUT_LAYOUTS = LAYOUTS | SHARING_LAYOUTS
OTHER_LAYOUTS = INPUT_LAYOUTS | {"single_value": single_value}
SHAPES = (
    ((5, 6), (6,)),
    ((3, 5, 7), (5,)),
    ((3, 16, 5, 6), (16,)),
    ((2, 3, 4, 3, 5), (3,)),
    ((3, 5, 1, 6), (1,)),
    ((18,), ()),
)


def _shapes(operator, shapes=SHAPES):
    """Those that it takes."""
    return list(filter(operator.takes, (Case("layouts", *each) for each in shapes)))


def assert_places(operator, arguments, setting, results):
    """Data lie like their argument, the rest is contiguous, and shapes and dtypes are right.

    (Compared where the operator is called: autograd would hide a wrong shape, it sums gradients to size.)
    """
    for result, tensor in zip(operator.results, results, strict=True):
        if tensor is None:
            continue
        like = operator.like(result, arguments, setting)
        assert (tensor.shape, tensor.dtype, tensor.device) == (like.shape, like.dtype, like.device)
        if result.role is Role.DATA:
            assert significant_strides(tensor) == significant_strides(torch.empty_like(like))
        else:
            assert tensor.stride() == torch.empty(like.shape).stride()


def assert_same(results, expected):
    for one, other in zip(results, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_same_bits(one, other)


# ---- Layouts -----------------------------------------------------------------------------------


@battery(dtypes=LARGEST_AND_SMALLEST, input_layout=each(INPUT_LAYOUTS))
def test_every_layout_of_the_input_with_every_layout_of_the_rest(
    operator, dtypes, input_layout, device
):
    others = OTHER_LAYOUTS if len(operator.data) > 1 else {"no others": contiguous}
    for case, (name, layout) in itertools.product(_shapes(operator), others.items()):
        layouts = dict.fromkeys(operator.data, layout) | {"input": input_layout}
        arguments = operator.make(case, dtypes, device, layouts=layouts, dyadic=True)
        with naming(shape=case.shape, slopes=case.slopes, other_layout=name):
            for setting in operator.settings.values():
                results = operator.check(arguments, setting, exact=operator.exact)
                assert_places(operator, arguments, setting, results)


@battery(product=False, dtypes=DTYPES, case=CASES)
def test_results_lie_like_the_input_and_as_pytorchs(operator, dtypes, case, device):
    """With one element for all of the other data, as `out.sum().backward()` hands over."""
    layouts = dict.fromkeys(operator.data, single_value) | {"input": case.layout}
    arguments = operator.make(case, dtypes, device, layouts=layouts)
    results = operator(*arguments, **first_setting(operator))
    assert_places(operator, arguments, first_setting(operator), results)
    if operator.pytorch is not None and dtypes[0] == dtypes[1] and operator.data == ["input"]:
        pytorchs = operator.as_pytorch(*arguments, **first_setting(operator))
        for result, one, other in zip(operator.results, results, pytorchs, strict=True):
            if result.name in operator.same_as_pytorch:
                assert significant_strides(one) == significant_strides(other)


@battery(dtypes=DTYPES)
def test_storage_may_start_anywhere(operator, dtypes, device):
    """Aligned vector loads would read another element, or crash."""
    for case in _shapes(operator, (((2, 3, 5, 29), (3,)), ((7, 37), (37,)), ((131,), (1,)))):
        plain = operator.make(case, dtypes, device, dyadic=True)
        expected = operator.check(plain, first_setting(operator), exact=operator.exact)
        assert_both_branches(plain[operator.place("input")], *present(expected))
        for start in range(16):
            starts = [start if index % 2 else 15 - start for index in range(len(plain))]
            moved = [offset(tensor, place) for tensor, place in zip(plain, starts)]
            with naming(shape=case.shape, starts=starts):
                assert_same(operator(*moved, **first_setting(operator)), expected)


@battery(dtypes=DTYPES, layout=each((step_2, expanded, offset)))
def test_parameters_may_have_any_strides(operator, dtypes, layout, device):
    case = Case("strides", (3, 6, 5, 7), (6,))
    layouts = dict.fromkeys(operator.parameters, layout)
    arguments = operator.make(case, dtypes, device, layouts=layouts, dyadic=True)
    results = operator.check(arguments, first_setting(operator), exact=operator.exact)
    assert_places(operator, arguments, first_setting(operator), results)
    whole = [tensor.clone(memory_format=torch.contiguous_format) for tensor in arguments]
    assert_same(results, operator(*whole, **first_setting(operator)))


@battery(dtypes=DTYPES)
def test_negated_views_are_read_as_negated(operator, dtypes, device):
    """torch._neg_view sets a bit instead of changing memory."""
    arguments = operator.make(Case("negated", (3, 4, 9), (4,)), dtypes, device, dyadic=True)
    views = [torch._neg_view(-tensor) for tensor in arguments]
    assert all(view.is_neg() for view in views)
    expected = operator(*arguments, **first_setting(operator))
    assert_both_branches(arguments[operator.place("input")], *present(expected))
    results = present(operator(*views, **first_setting(operator)))
    assert_same([result.resolve_neg() for result in results], present(expected))


# ---- Empty tensors, and settings ---------------------------------------------------------------


@battery(dtypes=DTYPES, case=EMPTY_CASES)
def test_an_empty_input_gives_empty_results_and_sums_of_zero(operator, dtypes, case, device):
    """Whatever the parameters are."""
    arguments = operator.make(case, dtypes, device)
    for name in operator.parameters:
        arguments[operator.place(name)].fill_(torch.nan)
    for setting in operator.settings.values():
        results = operator(*arguments, **setting)
        assert_places(operator, arguments, setting, results)
        for result, tensor in zip(operator.results, results):
            if tensor is not None and result.role is not Role.DATA and not result.statistic:
                assert_same_bits(tensor, torch.zeros_like(tensor))


@battery(dtypes=DTYPES, layout=each((contiguous, channels_last, step_2)))
def test_a_setting_selects_results_and_changes_no_bit(operator, dtypes, layout, device):
    """Of the settings that differ by what they leave out: random values, whose sums' bits depend on order."""
    for slopes in ((6,), (1,), ()):
        layouts = dict.fromkeys(operator.data, layout)
        arguments = operator.make(
            Case("mask", (4, 6, 5, 7), slopes), dtypes, device, layouts=layouts
        )
        whole = operator(*arguments, **first_setting(operator))
        assert_both_branches(arguments[operator.place("input")], *present(whole))
        for setting in operator.settings.values():
            if operator.masked(setting):
                results = operator(*arguments, **setting)
                for result, wanted, other in zip(
                    results, operator.wanted(setting), whole, strict=True
                ):
                    assert (result is not None) == wanted
                    assert not wanted or torch.equal(result, other)


# ---- Memory ------------------------------------------------------------------------------------


def _allocations(function):
    """What a call takes from the CPU allocator: bytes, and whether it copied a tensor."""
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        results = function()
    del results
    events = profile.function_events
    copied = any(event.name in ("aten::copy_", "aten::clone") for event in events)
    return sum(max(event.self_cpu_memory_usage, 0) for event in events), copied


def _images(operator, dtypes, layouts, slopes=(16,)):
    case = Case("image", (8, 16, 32, 32), slopes)
    arguments = operator.make(case, dtypes, layouts=layouts)
    return arguments, arguments[operator.place("input")].nbytes


def without_copies(operator):
    return {k: v for k, v in operator.settings.items() if operator.copies_nothing(v)}


@battery(
    dtypes=LARGEST_AND_SMALLEST,
    layout=each(DENSE_LAYOUTS),
    slopes=each({"per_channel": (16,), "shared": (1,)}),
    setting=without_copies,
)
def test_dense_layouts_are_not_copied_and_what_is_left_out_costs_nothing(
    operator, dtypes, layout, slopes, setting
):
    """Memory for the results, and partial sums of an eighth at most; for nothing, none."""
    arguments, size = _images(operator, dtypes, dict.fromkeys(operator.data, layout), slopes)
    taken, copied = _allocations(lambda: operator(*arguments, **setting))
    wanted = operator.wanted(setting)
    full = sum(r.role is Role.DATA and w for r, w in zip(operator.results, wanted))
    assert not copied and full * size <= taken < (full + 0.125) * size + 4096
    assert any(wanted) or taken == 0
    clones = [tensor.clone for tensor in arguments]
    taken, copied = _allocations(lambda: operator(*[clone() for clone in clones], **setting))
    assert copied and taken >= size, "this test would not see a copy"


@battery(without_copies, dtypes=LARGEST_AND_SMALLEST, layout=each((contiguous, channels_last)))
def test_other_data_in_another_layout_cost_at_most_a_copy_of_themselves(operator, dtypes, layout):
    layouts = dict.fromkeys(operator.data, single_value) | {"input": layout}
    arguments, size = _images(operator, dtypes, layouts)
    taken, _ = _allocations(lambda: operator(*arguments, **first_setting(operator)))
    assert size <= taken < (len(operator.data) + 0.125) * size + 4096


def test_the_case_list_holds_what_it_promises():
    inputs = [case_inputs(case, torch.float32)[0] for case in cases.CASES]
    assert any(0 in tensor.stride() for tensor in inputs)
    assert any(tensor.storage_offset() % 4 for tensor in inputs)
    for dim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        assert any(t.dim() == dim and t.is_contiguous(memory_format=memory_format) for t in inputs)
    assert any(tensor.dim() > 2 and tensor.shape[1] == tensor.shape[-1] for tensor in inputs)
    assert {tensor.dim() for tensor in inputs} == {0, 1, 2, 3, 4, 5, 6}
