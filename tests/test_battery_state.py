"""A call changes nothing but its results: arguments, copy-on-write memory, and what autograd keeps of them."""

import pytest
import torch
from batteries import CASES, DTYPES, SETTINGS, battery, first_setting
from cases import Case
from reference import assert_same_bits
from test_battery_autograd import leaves_of, subsets, wanted
from torch.autograd import graph

pytestmark = pytest.mark.contract


def _gradients(results, leaves):
    outputs = [result for result in results if result is not None and result.requires_grad]
    loss = sum(output.sum() for output in outputs)
    return torch.autograd.grad(loss, wanted(leaves), materialize_grads=True)


def _run(operator, arguments, setting):
    """Results, and the gradients of their sum."""
    leaves = leaves_of(operator, arguments)
    results = operator.derivable(operator(*leaves, **setting))
    return [r.detach() for r in results] + list(_gradients(results, leaves) if results else ())


def _assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


# ---- Arguments ---------------------------------------------------------------------------------


@battery(product=False, dtypes=DTYPES, case=CASES)
def test_arguments_are_not_changed(operator, dtypes, case, device):
    for arguments in operator.signs(operator.make(case, dtypes, device)):
        before = [(t.clone(), t._version, t.data_ptr(), t.stride()) for t in arguments]
        results = _run(operator, arguments, first_setting(operator))
        for tensor, (copy, *rest) in zip(arguments, before):
            assert_same_bits(tensor, copy)
            assert [tensor._version, tensor.data_ptr(), tensor.stride()] == rest
        pointers = {tensor.data_ptr() for tensor in arguments}
        assert all(result.data_ptr() not in pointers for result in results if result.numel())


@battery(dtypes=DTYPES, setting=SETTINGS)
def test_copy_on_write_arguments_stay_unmaterialised(operator, dtypes, setting, device):
    arguments = operator.make(Case("cow", (2, 3, 40), (3,)), dtypes, device)
    expected = _run(operator, arguments, setting)
    lazy = [torch._lazy_clone(tensor) for tensor in arguments]
    assert all(torch._C._is_cow_tensor(tensor) for tensor in lazy)
    _assert_same(_run(operator, lazy, setting), expected)
    assert all(torch._C._is_cow_tensor(tensor) for tensor in lazy)


# ---- What autograd keeps -----------------------------------------------------------------------


def says_what_is_saved(operator):
    return operator.saved is not None


def _place(tensor):
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


@battery(says_what_is_saved, product=False, dtypes=DTYPES, case=CASES)
def test_exactly_what_is_promised_is_saved(operator, dtypes, case, device):
    """No mask, no output, no copy: the very memory of arguments. It goes through the hooks, once each, and
    what they give back is used."""
    leaves = leaves_of(operator, operator.make(case, dtypes, device))
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    def unpack(index):
        unpacked.append(index)
        return packed[index]

    with graph.saved_tensors_hooks(pack, unpack):
        results = operator(*leaves, **first_setting(operator))
    kept = [leaves[operator.place(name)] for name in operator.saved]
    of_arguments, own = packed[: len(kept)], packed[len(kept) :]
    assert [_place(tensor) for tensor in of_arguments] == [_place(tensor) for tensor in kept]
    assert all(tensor.requires_grad for tensor in of_arguments) and unpacked == []
    assert len(own) == operator.saved_statistics and all(tensor.dim() < 3 for tensor in own)
    assert not {tensor.data_ptr() for tensor in own} & {leaf.data_ptr() for leaf in leaves}
    gradients = _gradients(results, leaves)
    assert sorted(unpacked) == list(range(len(packed)))
    _assert_same(gradients, _gradients(operator(*leaves, **first_setting(operator)), leaves))


@battery(dtypes=DTYPES)
def test_saving_on_the_cpu_changes_nothing(operator, dtypes, device):
    """In pinned memory as well, where there is a GPU."""
    arguments = operator.make(Case("saved", (3, 4, 5), (4,)), dtypes, device)
    expected = _run(operator, arguments, first_setting(operator))
    for pinned in {False, torch.cuda.is_available()}:
        with graph.save_on_cpu(pin_memory=pinned):
            _assert_same(_run(operator, arguments, first_setting(operator)), expected)


@battery(dtypes=DTYPES)
def test_nothing_is_saved_where_no_gradient_is_needed(operator, dtypes, device):
    arguments = operator.make(Case("nothing", (3, 4, 5), (4,)), dtypes, device)
    saved = []
    with graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        operator(*arguments, **first_setting(operator))
        with torch.no_grad():
            operator(*leaves_of(operator, arguments), **first_setting(operator))
    assert saved == []


@battery(says_what_is_saved, needed=subsets)
def test_changes_in_place_are_detected(operator, needed, device):
    """Of every argument that is saved, and of a view of it; of the output, which nobody saved, they are fine."""
    arguments = operator.make(Case("in place", (3, 4, 5), (4,)), operator.dtypes[0], device)
    if not needed:
        return
    for changed in operator.saved:
        for change in (lambda tensor: tensor.mul_(2), lambda tensor: tensor[0].zero_()):
            leaves = leaves_of(operator, arguments, needed)
            given = [leaf.clone() for leaf in leaves]
            results = operator(*given, **first_setting(operator))
            with torch.no_grad():
                change(given[operator.place(changed)])
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                _gradients(results, leaves)
    leaves = leaves_of(operator, arguments, needed)
    results = operator.derivable(operator(*leaves, **first_setting(operator)))
    expected = _gradients(results, leaves)
    results = [r.mul_(2) for r in operator.derivable(operator(*leaves, **first_setting(operator)))]
    _assert_same(_gradients(results, leaves), [2 * gradient for gradient in expected])


@battery(says_what_is_saved)
def test_mutation_of_saved_tensors_may_be_allowed(operator, device):
    arguments = operator.make(Case("mutation", (3, 4, 5), (4,)), operator.dtypes[0], device)
    expected = _run(operator, arguments, first_setting(operator))
    leaves = leaves_of(operator, arguments)
    with graph.allow_mutation_on_saved_tensors():
        given = [leaf.clone() for leaf in leaves]
        results = operator.derivable(operator(*given, **first_setting(operator)))
        for name in operator.saved:
            given[operator.place(name)].mul_(-1)
        gradients = _gradients(results, leaves)
    _assert_same([*(r.detach() for r in results), *gradients], expected)


@battery(dtypes=DTYPES)
def test_no_grad_and_inference_mode(operator, dtypes, device):
    arguments = operator.make(Case("modes", (3, 4, 5), (4,)), dtypes, device)
    setting = first_setting(operator)
    expected = operator.derivable(operator(*arguments, **setting))
    leaves = leaves_of(operator, arguments)
    with torch.no_grad():
        results = operator.derivable(operator(*leaves, **setting))
        assert all(result.grad_fn is None for result in results)
        _assert_same(results, expected)
        with torch.enable_grad():
            assert all(
                r.grad_fn is not None for r in operator.derivable(operator(*leaves, **setting))
            )
    with torch.inference_mode():
        results = operator.derivable(operator(*leaves, **setting))
        assert all(result.is_inference() and not result.requires_grad for result in results)
        _assert_same([result.clone() for result in results], expected)
        kept = [leaf.clone() for leaf in leaves]
    results = operator.derivable(
        operator(*kept, **setting)
    )  # on inference tensors: nothing to differentiate
    assert not any(result.requires_grad or result.is_inference() for result in results)
    _assert_same(results, expected)
    for name in operator.saved or ():
        mixed = list(leaves)
        mixed[operator.place(name)] = kept[operator.place(name)]
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backwa"):
            operator(*mixed, **setting)


@battery()
def test_a_graph_may_be_used_twice_if_it_is_retained(operator, device):
    """The graph of the second order, too."""
    arguments = operator.make(Case("twice", (3, 4, 5), (4,)), operator.dtypes[0], device)
    for create_graph in (False, True):
        leaves = leaves_of(operator, arguments)
        values = operator.derivable(operator(*leaves, **first_setting(operator)))
        if create_graph:
            loss = sum(value.sum() for value in values)
            values = torch.autograd.grad(loss, wanted(leaves), create_graph=True)
        loss = sum(value.square().sum() for value in values)
        options = {"materialize_grads": True}
        once = torch.autograd.grad(loss, wanted(leaves), retain_graph=True, **options)
        _assert_same(torch.autograd.grad(loss, wanted(leaves), **options), once)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, wanted(leaves), **options)
