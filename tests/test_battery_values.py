"""Every result is what the oracle says, and what PyTorch's equivalent gives."""

import math
import warnings

import pytest
import torch
from batteries import CASES, DTYPES, battery, each, first_setting
from cases import SLOPES, Case, channels_last, contiguous, random_values, special_values
from operator_rows import Role
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import present

pytestmark = pytest.mark.contract

ELEMENTWISE = lambda operator: operator.elementwise


def _compare_with_pytorchs(operator, arguments, setting, results):
    if operator.pytorch is None or len({tensor.dtype for tensor in arguments}) > 1:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytorchs = operator.as_pytorch(*arguments, **setting)
    for result, one, other in zip(operator.results, results, pytorchs, strict=True):
        if result.name in operator.same_as_pytorch and one is not None:
            assert_same_bits(one, other)


# ---- Ordinary values ---------------------------------------------------------------------------


@battery(dtypes=DTYPES, case=CASES)
def test_results_are_those_of_the_definition_and_of_pytorch(operator, dtypes, case, device):
    """With every value of each parameter; sums are within their bound. Also for the mixed pair, whose
    product is rounded to float32, then to 16 bits. Every setting has the bits of the others."""
    made = operator.make(case, dtypes, device)
    for arguments in operator.signs(made):
        for tensors in operator.every_parameter(case, dtypes, arguments):
            results = operator.check(tensors, first_setting(operator))
            if tensors is arguments:
                assert_both_branches(tensors[operator.place("input")], *present(results))
            _compare_with_pytorchs(operator, tensors, first_setting(operator), results)


@battery(dtypes=DTYPES, case=CASES)
def test_exact_data_give_exact_results_with_every_setting(operator, dtypes, case, device):
    """Small integers: every partial sum is exact in any order, only the last rounding is left."""
    made = operator.make(case, dtypes, device, dyadic=True)
    for arguments in operator.signs(made):
        for setting in operator.settings.values():
            results = operator.check(arguments, setting, exact=operator.exact)
            whole = [result for result in results if result is not None]
            assert_both_branches(arguments[operator.place("input")], *whole)


@battery(dtypes=DTYPES)
def test_sizes_around_every_vector_width(operator, dtypes, device):
    """Rows, planes and channel counts from 1 to 70: whole vectors, tails, and both."""
    for size in range(1, 71):
        for shape, slopes in (
            ((3, size), (size,)),
            ((2, 3, size), (3,)),
            ((size, 3), (3,)),
            ((size,), ()),
        ):
            case = Case(f"size {size}", shape, slopes)
            if operator.takes(case):
                arguments = operator.make(case, dtypes, device, dyadic=True)
                operator.check(arguments, first_setting(operator), exact=operator.exact)


# ---- Special values ----------------------------------------------------------------------------


def _every_special_tuple(operator, dtypes, device):
    """Sixteen special values for each data argument, in all tuples, with all special slopes: data are
    (tuples, slopes) and a parameter has a slope for each column."""
    names = operator.data
    values = special_values(dtypes[0], device)
    others = torch.tensor(SLOPES, dtype=torch.float64).to(device, dtypes[1])
    slopes = torch.cat([special_values(dtypes[1], device), others])
    grids = torch.meshgrid(*[values] * len(names), indexing="ij")
    data = {n: grid.reshape(-1, 1).repeat(1, len(slopes)) for n, grid in zip(names, grids)}
    return data, slopes


WALKS = {
    # how (tuples, slopes) become a problem with a long run for each slope, or a row of them
    "columns": lambda t: t,
    "planes": lambda t: t.T.contiguous().unsqueeze(0),
    "channels_last": lambda t: t.T.unsqueeze(0),
    # and one with a channel for each element, so that no sum hides a term
    "a_channel_each": lambda t: t.reshape(1, -1),
    "a_plane_each": lambda t: t.reshape(1, -1, 1),
}


@battery(ELEMENTWISE, dtypes=DTYPES, walk=each(WALKS))
def test_every_special_input_with_every_special_slope(operator, dtypes, walk, device):
    """Both zeros, subnormals, the smallest and largest numbers, infinities, NaN; products that overflow."""
    data, slopes = _every_special_tuple(operator, dtypes, device)
    data = {name: walk(tensor) for name, tensor in data.items()}
    channels = data["input"].shape[1]
    case = Case("special", tuple(data["input"].shape), (channels,))
    arguments = operator.make(case, dtypes, device)
    for name, tensor in data.items():
        arguments[operator.place(name)] = tensor
    slope = next(a.name for a in operator.arguments if a.role is Role.SLOPE)
    arguments[operator.place(slope)] = slopes.repeat(channels // len(slopes))
    for setting in operator.settings.values():
        results = operator.check(arguments, setting, exact=channels > len(slopes))
        _compare_with_pytorchs(operator, arguments, setting, results)


@battery(
    ELEMENTWISE,
    dtype=each((torch.bfloat16, torch.float16)),
    slope_dtype=each({"one_dtype": None, "float32_slope": torch.float32}),
    shape=each({"planes": (1, 1, 1 << 16), "columns": (1 << 12, 16)}),
)
def test_all_16_bit_patterns_special_or_not(operator, dtype, slope_dtype, shape, device):
    """Every input, with every gradient once; rounding works on bits, where NaNs need no luck."""
    dtypes = (dtype, slope_dtype or dtype)
    patterns = torch.arange(-(1 << 15), 1 << 15, device=device).to(torch.int16).view(dtype)
    case = Case("patterns", shape, shape[1:2])
    arguments = operator.make(case, dtypes, device)
    for name in operator.data:
        order = torch.randperm(len(patterns)) if name != "input" else slice(None)
        arguments[operator.place(name)] = patterns[order].reshape(shape)
    slope = next(a.name for a in operator.arguments if a.role is Role.SLOPE)
    for value in (*SLOPES, 1e-30, 3e38, 1.0 + 2.0**-9):  # some overflow to infinity in 16 bits
        weight = torch.full(shape[1:2], value, device=device).to(dtypes[1])
        arguments[operator.place(slope)] = weight
        operator.check(arguments, first_setting(operator))


@battery(ELEMENTWISE, dtypes=DTYPES, layout=each((contiguous, channels_last)))
def test_a_special_value_reaches_its_own_element_and_no_neighbour(operator, dtypes, layout, device):
    """One at a time, in every lane of a vector, in ordinary data."""
    case = Case("lanes", (1, 2, 67), (2,), layout)
    arguments = operator.make(case, dtypes, device, dyadic=True)
    specials = special_values(dtypes[0], device)
    for place in range(67):
        changed = [argument.clone() for argument in arguments]
        for offset, name in enumerate(operator.data):
            changed[operator.place(name)][0, 1, place] = specials[(place + 5 * offset) % 16]
        operator.check(changed, first_setting(operator), exact=operator.exact)


def test_the_values_are_the_special_ones(dtype):
    values, info = special_values(dtype).tolist(), torch.finfo(dtype)
    for value in (0.0, info.tiny * info.eps, info.tiny, 1.0, info.max, math.inf):
        assert value in values and -value in values
    assert sum(value == 0 for value in values) == 2 and sum(map(math.isnan, values)) == 1


def test_the_cases_slopes_hold_what_formulas_other_than_the_select_get_wrong():
    slopes = torch.tensor(SLOPES)
    assert (
        slopes.isnan().any() and slopes.isinf().any() and (slopes < 0).any() and (slopes > 1).any()
    )
    assert random_values((100,), torch.float32).eq(0).any()
