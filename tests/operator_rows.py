"""What a row of the table of operators (operators.py) is made of.

  arguments   tensors, by the names of the schema. `Role` says where shape and dtype come from:
              DATA has the case's shape and the data's dtype, CHANNEL a value per channel, SLOPE one for
              all or one per channel (`Case.slopes`); both have the parameters' dtype.
  settings    named sets of keyword arguments: masks, flags, eps, `weight=None` for an optional
              tensor. Batteries try them all; the first is the usual one.
  results     in order. DATA is laid out in memory as the argument `like`, the others are contiguous;
              shape and dtype are those of `like`. A setting can leave a result out: it is None. A
              `statistic` has no derivative.
  oracle      what the results are, by float64 (expected.py): the same bits, or a value and a bound.
  plain       the definition in PyTorch's differentiable operations: the oracle of derivatives.
  pytorch     PyTorch's equivalent, and `same_as_pytorch`: the results that have its bits.
  exact       small integers and dyadic parameters give results and derivatives without any rounding but
              the last. Else derivatives are within `derivative_error` of the largest value.
  takes       of a case: whether the operator accepts its shape.
  most        of the tests that a battery makes of the row, spread over the values of every axis. None:
              each value with each other. Of operators that share kernels with others.

Made data (`make`) have as many positive as negative elements, so that both branches occur; the
batteries assert it with `reference.assert_both_branches`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from cases import (
    CASES,
    DTYPE_PAIRS,
    EMPTY_CASES,
    LARGE_CASES,
    SMALL_CASES,
    contiguous,
    dyadic_slopes,
    finite_slopes,
    integer_values,
    random_values,
    slope_tensors,
)


class Role(enum.Enum):
    DATA = "data"
    SLOPE = "slope"
    CHANNEL = "channel"


def values_in_turn(*values):
    """Of parameters: (shape, dtype, device) -> a tensor of these values, again and again."""
    return lambda shape, dtype, device=None: next(slope_tensors(shape, dtype, device, values))


@dataclass(frozen=True)
class Argument:
    name: str
    role: Role
    differentiable: bool = True
    optional: bool = False
    signed: bool = True  # a variance is not
    ordinary: Callable = finite_slopes  # (shape, dtype, device) -> tensor; of parameters
    dyadic: Callable = dyadic_slopes  # the same, small powers of two: products are exact
    every: Callable | None = None  # (case, dtype, device) -> tensors that the values are tried with

    def shape(self, case):
        return {Role.DATA: case.shape, Role.SLOPE: case.slopes}.get(self.role, case.shape[1:2])


@dataclass(frozen=True)
class Result:
    name: str
    role: Role
    # The argument whose shape and dtype it has; or (given: dict) -> a tensor that has them.
    like: str | Callable = "input"
    statistic: bool = False


@dataclass(frozen=True)
class Operator:
    name: str
    call: Callable
    schema: str
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    oracle: Callable  # (*arguments, **setting) -> an Expected, or None, for each result
    plain: Callable  # (*arguments, **setting) -> a tensor, or None, for each result
    settings: dict[str, dict] = field(default_factory=lambda: {"": {}})
    pytorch: Callable | None = None  # (*arguments, **setting) -> as plain
    same_as_pytorch: tuple[str, ...] = ()
    backward: Callable | None = None  # (grad_output, *arguments) -> the bits autograd has to give
    graph_keeps_bits: bool = True  # gradients are the same where a graph is made of them
    masks: tuple[str, ...] = ()  # keywords of settings that only leave results out
    mask: Callable | None = None  # of a setting: which results it leaves in; None: all
    exact: bool = True
    derivative_error: Callable | None = None  # of a dtype: in units of the largest value
    elementwise: bool = True  # DATA results depend on their own element and channel only
    saved: tuple[str, ...] | None = None  # what autograd keeps, and nothing else; None: no promise
    saved_statistics: int = 0  # tensors of a value per channel, or sample and channel, beside those
    native: bool = True  # a kernel of its own for each dispatch key, in torch_ext's library
    whole: bool = True  # `call` is the operator of the schema, and nothing else
    # Of a setting: dense inputs are not copied, and no memory is taken but for results and partial sums.
    copies_nothing: Callable = lambda setting: True
    bad: dict = field(default_factory=dict)  # by name: bad_arguments.Bad
    dtypes: tuple = DTYPE_PAIRS  # of data and parameters: what it is tried with
    accepts: tuple = DTYPE_PAIRS  # the only ones that it takes
    takes: Callable = lambda case: True
    most: int | None = None
    cases: tuple = CASES
    empty_cases: tuple = EMPTY_CASES
    small_cases: tuple = SMALL_CASES  # for finite differences
    large_cases: tuple = LARGE_CASES  # for threads

    def __call__(self, *arguments, **setting):
        """The results: a tensor or None for each."""
        return self._results(self.call, arguments, setting)

    def define(self, *arguments, **setting):
        """The same by the definition in PyTorch's operations."""
        return self._results(self.plain, arguments, setting)

    def as_pytorch(self, *arguments, **setting):
        return self._results(self.pytorch, arguments, setting)

    def given(self, arguments, setting):
        """By name. A setting may take an argument's place: None for an optional one."""
        return dict(zip(self.names, arguments, strict=True)) | setting

    def _results(self, call, arguments, setting):
        results = call(**self.given(arguments, setting))
        return (results,) if isinstance(results, torch.Tensor) else tuple(results)

    def derivable(self, results):
        """Those of the results, given for each or for none that is left out, that have derivatives."""
        pairs = zip(self.results, results, strict=True)
        return [tensor for r, tensor in pairs if tensor is not None and not r.statistic]

    def like(self, result, arguments, setting):
        """A tensor with the shape and dtype that a result has."""
        given = self.given(arguments, setting)
        return result.like(given) if callable(result.like) else given[result.like]

    @property
    def names(self):
        return [argument.name for argument in self.arguments]

    def place(self, name):
        return self.names.index(name)

    @property
    def schema_name(self):
        """As graphs write it."""
        return self.schema.partition("(")[0].replace("::", ".") + ".default"

    @property
    def data(self):
        """The arguments that are as large as the input."""
        return [argument.name for argument in self.arguments if argument.role is Role.DATA]

    @property
    def parameters(self):
        return [argument.name for argument in self.arguments if argument.role is not Role.DATA]

    def wanted(self, setting):
        """For each result, whether this setting leaves it in."""
        return self.mask(setting) if self.mask else [True] * len(self.results)

    def masked(self, setting):
        """Whether a setting differs from the first by the results that it leaves out only."""
        settings = next(iter(self.settings.values())), setting
        first, other = ({k: v for k, v in s.items() if k not in self.masks} for s in settings)
        return first == other

    def make(self, case, dtypes, device="cpu", values=None, layouts=None, seed=None, dyadic=False):
        """One tensor for each argument. `layouts` is by name; the input's own is the case's."""
        values = values or (integer_values if dyadic else random_values)
        layouts = {"input": case.layout} | (layouts or {})
        seed = case.seed if seed is None else seed
        made = []
        for index, argument in enumerate(self.arguments):
            shape = argument.shape(case)
            if argument.role is Role.DATA:
                layout = layouts.get(argument.name, contiguous)
                number = seed if argument.name == "input" else seed + 1 + index
                made.append(layout(values(shape, dtypes[0], device, seed=number)))
            else:
                parameter = argument.dyadic if dyadic else argument.ordinary
                layout = layouts.get(argument.name, contiguous)
                made.append(layout(parameter(shape, dtypes[1], device)))
        return made

    def signs(self, arguments):
        """The arguments; of a tiny case, which cannot hold both signs, also with the other one."""
        yield arguments
        at = self.place("input")
        if arguments[at].numel() < 16:
            negated = -arguments[at]
            flipped = negated.as_strided(arguments[at].shape, negated.stride())
            yield [*arguments[:at], flipped, *arguments[at + 1 :]]

    def every_parameter(self, case, dtypes, arguments):
        """The arguments, with every value that each parameter has to be tried with."""
        yield arguments
        for index, argument in enumerate(self.arguments):
            if argument.every:
                for tensor in argument.every(case, dtypes[1], arguments[index].device):
                    yield [*arguments[:index], tensor, *arguments[index + 1 :]]

    def check(self, arguments, setting, exact=False):
        """Runs it; every result is what the oracle says; returns the results."""
        results = self(*arguments, **setting)
        expected = self.oracle(**self.given(arguments, setting))
        for result, expectation in zip(results, expected, strict=True):
            assert (result is None) == (expectation is None)
            if expectation is not None:
                expectation.check(result, exact)
        return results

    def assert_near(self, actual, expected):
        """In units of the largest of all: a sum over everything may cancel to almost nothing."""
        largest = max((t.double().abs().max() for t in expected if t.numel()), default=0)
        for one, other in zip(actual, expected, strict=True):
            assert one.shape == other.shape
            error = (one.double() - other.double()).abs()
            assert (error <= self.derivative_error(one.dtype) * largest).all()

    def assert_derivatives(self, actual, expected):
        """Those of exact data in any dtype, against float64 ones of the plain definition."""
        if not self.exact:
            return self.assert_near(actual, expected)
        for one, other in zip(actual, expected, strict=True):
            assert one.shape == other.shape
            assert torch.equal(one.double(), other.to(one.dtype).double())
