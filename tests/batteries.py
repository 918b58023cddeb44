"""What makes a test a battery: it runs for every row of the table of operators, and says so.

    @battery(dtypes=DTYPES, case=CASES)
    def test_something(operator, dtypes, case, device): ...

is one test for each row, and for each value of each axis that the row has. An axis is a function of a
row that returns named values. `where` chooses the rows that promise the property.
tests/test_operators.py runs every battery on operators that are broken on purpose.
"""

import contextlib
import inspect
import itertools
import zlib

import pytest
from operators import OPERATORS


def _by_name(values):
    return {value.name: value for value in values}


def _name_of_dtypes(dtypes):
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return names[0] if names[0] == names[1] else "_with_".join(names)


def DTYPES(operator):
    """Of data and parameters."""
    return {_name_of_dtypes(dtypes): dtypes for dtypes in operator.dtypes}


def CASES(operator):
    return _by_name(operator.cases)


def DATA_TYPES(operator):
    """One pair for each type of data: those with parameters of another type run the same kernels."""
    firsts = {}
    for name, dtypes in DTYPES(operator).items():
        firsts.setdefault(dtypes[0], (name, dtypes))
    return dict(firsts.values())


def EMPTY_CASES(operator):
    return _by_name(operator.empty_cases)


def SMALL_CASES(operator):
    return _by_name(operator.small_cases)


def LARGE_CASES(operator):
    return _by_name(operator.large_cases)


def SETTINGS(operator):
    return operator.settings


def some(axis, *names):
    """Of an axis, the values with these names that the row has."""
    return lambda operator: {k: v for k, v in axis(operator).items() if k in names}


# One for each size of an element, and the extremes alone; the last ones with parameters of another type.
ELEMENT_SIZES = some(DTYPES, "float64", "float32", "bfloat16_with_float32")
LARGEST_AND_SMALLEST = some(DTYPES, "float64", "bfloat16_with_float32")


def each(values):
    """An axis that is the same for all rows."""
    named = (
        values if isinstance(values, dict) else {getattr(v, "__name__", str(v)): v for v in values}
    )
    return lambda operator: named


def first_setting(operator):
    return next(iter(operator.settings.values()))


def _spread(axes, most, name):
    """`most` combinations, or as many as the longest axis has values: from all over each axis, and others
    for each name, so that operators with a few tests each see all values together."""
    longest = max(map(len, axes), default=1) if all(axes) else 0
    count = min(most or longest, longest)
    starts = [zlib.crc32(f"{name} {place}".encode()) for place in range(len(axes))]

    def value(axis, start, i):
        return axis[(start + (i * len(axis) // count if len(axis) > count else i)) % len(axis)]

    return [tuple(value(axis, start, i) for axis, start in zip(axes, starts)) for i in range(count)]


def rows_of(function, operator):
    """What a battery is called with for a row: ids and arguments."""
    axes = [list(axis(operator).items()) for axis in function.axes.values()]
    chosen = itertools.product(*axes)
    if operator.most or not function.product:
        chosen = _spread(axes, operator.most, f"{function.__name__} {operator.name}")
    for values in chosen:
        name = "-".join([operator.name, *(str(key) for key, _ in values if str(key))])
        yield name, [operator, *(value for _, value in values)]


@contextlib.contextmanager
def naming(**what):
    """A failure inside says what was tried."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"with {what}: {error}") from error


def is_native(operator):
    return operator.native


def battery(where=lambda operator: True, product=True, **axes):
    """`product`: each value of an axis with each of the others. Else each value at least once, for a property
    that depends on one axis at a time."""

    def mark(function):
        function.where, function.product, function.axes = where, product, axes
        rows = [row for each in OPERATORS if where(each) for row in rows_of(function, each)]
        assert rows, f"no operator has the property of {function.__name__}"
        params = [pytest.param(*arguments, id=name) for name, arguments in rows]
        return pytest.mark.parametrize(("operator", *axes), params)(function)

    return mark


def run(function, operator, most=None):
    """A battery on a row, outside of pytest: all of its tests, or the first ones. Returns how many."""
    rows = list(rows_of(function, operator))[:most] if function.where(operator) else []
    names = ["operator", *function.axes]
    if "device" in inspect.signature(function).parameters:
        names, rows = [*names, "device"], [(name, [*row, "cpu"]) for name, row in rows]
    for _, arguments in rows:
        function(**dict(zip(names, arguments, strict=True)))
    return len(rows)
