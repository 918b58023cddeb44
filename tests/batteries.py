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
    count = min(most, max(map(len, axes), default=1)) if all(axes) else 0
    starts = [zlib.crc32(f"{name} {place}".encode()) for place in range(len(axes))]
    return [
        tuple(
            axis[(start + i * len(axis) // count) % len(axis)] for axis, start in zip(axes, starts)
        )
        for i in range(count)
    ]


def rows_of(function, operator):
    """What a battery is called with for a row: ids and arguments."""
    axes = [list(axis(operator).items()) for axis in function.axes.values()]
    chosen = itertools.product(*axes)
    if operator.most:
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


def battery(where=lambda operator: True, **axes):
    def mark(function):
        function.where, function.axes = where, axes
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
