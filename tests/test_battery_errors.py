"""Bad arguments, straight through torch.ops: PyTorch's errors in PyTorch's order, Meta included."""

import itertools
import re

import pytest
import torch
from batteries import DTYPES, SETTINGS, battery, first_setting, naming
from cases import Case
from reference import assert_same_bits
from test_battery_autograd import leaves_of, present

pytestmark = pytest.mark.contract

F32 = torch.float32


def error_of(function, *args, **kwargs):
    with pytest.raises(RuntimeError) as caught:  # NotImplementedError is one
        function(*args, **kwargs)
    return caught.type, str(caught.value)


def _differentiable(operator, tensors):
    return [
        t.detach().requires_grad_(
            a.differentiable and t.dtype.is_floating_point and t.dtype.itemsize > 1
        )
        for a, t in zip(operator.arguments, tensors, strict=True)
    ]


def has_bad_arguments(operator):
    return bool(operator.bad)


def _bad(operator):
    return operator.bad


@battery(has_bad_arguments, bad=_bad)
def test_bad_arguments_are_refused_in_these_words(operator, bad, device):
    """As PyTorch's; with every setting, with gradients, and in inference mode, which skips autograd's kernel."""
    arguments = bad.make(operator, device)
    expected = bad.error, bad.words(operator, device)
    if bad.also_pytorchs:
        assert error_of(operator.as_pytorch, *arguments, **first_setting(operator)) == expected
    for setting in operator.settings.values():
        if set(setting) & set(operator.names):
            continue  # it may be the bad argument whose place it takes
        assert error_of(operator, *arguments, **setting) == expected
        assert error_of(operator, *_differentiable(operator, arguments), **setting) == expected
        with torch.inference_mode():
            assert error_of(operator, *arguments, **setting) == expected


@battery(has_bad_arguments, bad=_bad)
def test_meta_rejects_what_the_kernels_reject(operator, bad):
    """PyTorch's Meta kernels let wrong dtypes pass."""
    arguments = bad.make(operator, "meta")
    for tensors in (arguments, _differentiable(operator, arguments)):
        error, text = error_of(operator, *tensors, **first_setting(operator))
        assert error is bad.error
        if error is NotImplementedError:
            assert bad.text.partition(" ")[2] in text
        else:
            assert text == bad.words(operator, "meta")


@battery()
def test_no_other_dtypes_are_accepted(operator, device):
    some = (torch.float64, F32, torch.float16, torch.bfloat16, torch.long, torch.bool)
    accepted = set()
    for dtypes in itertools.product((*some, torch.complex64), repeat=2):
        made = operator.make(Case("dtypes", (2, 3, 4), (3,)), (F32, F32), device, dyadic=True)
        arguments = [
            t.to(dtypes[0] if n in operator.data else dtypes[1])
            for n, t in zip(operator.names, made)
        ]
        try:
            results = operator(*arguments, **first_setting(operator))
            assert results[0].dtype == dtypes[0]
            accepted.add(dtypes)
        except RuntimeError:
            pass
    assert accepted == set(operator.accepts)


@battery(setting=SETTINGS)
def test_an_undefined_tensor_is_rejected_by_name(operator, setting, device):
    for requires_grad in (False, True):
        made = operator.make(Case("undefined", (2, 3, 4), (3,)), (F32, F32), device)
        arguments = leaves_of(operator, made) if requires_grad else made
        for place, argument in enumerate(operator.arguments):
            if argument.name not in setting and not argument.optional:
                given = [*arguments[:place], None, *arguments[place + 1 :]]
                text = error_of(operator, *given, **setting)[1]
                assert re.search(rf"\b{argument.name}\b", text)


@battery()
def test_tensors_of_two_devices_are_rejected(operator, device):
    """A 0-D parameter of another device, too; and before an unsupported dtype is."""
    for dtype, slopes in itertools.product((F32, torch.long), ((3,), ())):
        made = operator.make(Case("devices", (2, 3, 4), slopes), (F32, F32), device)
        made = [tensor.to(dtype) for tensor in made]
        setting = first_setting(operator)
        parameters = [[name] for name in operator.parameters if name not in setting]
        for moved in (operator.data, *parameters):
            pairs = zip(operator.names, made, strict=True)
            given = [t.to("meta") if name in moved else t for name, t in pairs]
            with naming(elsewhere=moved, dtype=dtype):
                error, text = error_of(operator, *given, **setting)
                assert error is RuntimeError and "device" in text


def has_other_data(operator):
    return len(operator.data) > 1


@battery(has_other_data, setting=SETTINGS, dtypes=DTYPES)
def test_other_data_must_match_the_input(operator, setting, dtypes, device):
    """In shape, dtype and device: nothing is broadcast or promoted. The error names the argument."""
    arguments = operator.make(Case("match", (2, 3, 4), (3,)), dtypes, device)
    shapes = ((2, 4, 3), (24,), (1, 3, 1), (1, 3, 4), (3, 3, 4), (), (0,), (1, 2, 3, 4))
    wrong = [torch.ones(shape, dtype=dtypes[0], device=device) for shape in shapes]
    others = {torch.float64, F32, torch.half, torch.bfloat16, torch.long} - {dtypes[0]}
    wrong += [torch.ones((2, 3, 4), dtype=dtype, device=device) for dtype in others]
    wrong += [torch.ones((2, 3, 4), dtype=dtypes[0], device="meta")]
    for name in set(operator.data) - {"input"}:
        at = operator.place(name)
        for tensor in wrong:
            given = [*arguments[:at], tensor, *arguments[at + 1 :]]
            tried = [given, _differentiable(operator, given)]
            tried += [[t.to("meta") for t in given]] if not tensor.is_meta else []
            with naming(name=name, shape=tensor.shape, dtype=tensor.dtype):
                for each in tried:
                    error, text = error_of(operator, *each, **setting)
                    assert error is RuntimeError and name in text
                with torch.inference_mode():
                    assert name in error_of(operator, *given, **setting)[1]


def has_masks(operator):
    return bool(operator.masks)


@battery(has_masks)
def test_a_mask_has_an_entry_for_each_result(operator, device):
    arguments = operator.make(Case("masks", (2, 3, 4), (3,)), (F32, F32), device)
    count = len(operator.results)
    for length in {0, 1, count - 1, count + 1}:
        setting = first_setting(operator) | dict.fromkeys(operator.masks, [True] * length)
        error_of(operator, *arguments, **setting)
        error_of(operator, *_differentiable(operator, arguments), **setting)
        with torch.inference_mode():
            error_of(operator, *arguments, **setting)


@battery(has_bad_arguments)
def test_an_error_changes_nothing(operator, device):
    for bad in list(operator.bad.values())[::8]:
        arguments = bad.make(operator, device)
        copies = [tensor.clone() for tensor in arguments]
        for _ in range(3):
            error_of(operator, *arguments, **first_setting(operator))
        for one, other in zip(arguments, copies, strict=True):
            assert torch.equal(one, other)
    good = operator.make(Case("good", (3, 5, 7), (5,)), (F32, F32), device)
    results = (present(operator(*good, **first_setting(operator))) for _ in range(2))
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)
