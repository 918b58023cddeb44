"""The table of operators: what each of them is, as data that every battery of tests runs over.

A *row* (`Operator`) says how an operator is called, on which arguments and settings it is tried, what
its results have to be, and what it promises besides. A *battery* (tests/test_battery_<property>.py)
proves one property of every row that promises it; it knows no operator. So a new operator needs a
row here, and tests of its own only for what no other operator has.

The parts of a row:

  arguments   tensors, by the names of the schema. `Role` says where shape and dtype come from:
              DATA has the case's shape and the data's dtype, CHANNEL a value per channel, SLOPE one for
              all or one per channel (`Case.slopes`); both have the parameters' dtype.
  settings    named sets of keyword arguments: masks, flags, eps, `weight=None` for an optional
              tensor. Batteries try them all; the first is the usual one.
  results     in order. DATA is laid out in memory as the argument `like`, the others are contiguous;
              shape and dtype are those of `like`. A setting can leave a result out: it is None.
  oracle      what the results are, by float64 (expected.py): the same bits, or a value and a bound.
  plain       the definition in PyTorch's differentiable operations: the oracle of derivatives.
  pytorch     PyTorch's equivalent, and `same_as_pytorch`: the results that have its bits.
  exact       small integers and dyadic parameters give results and derivatives without any rounding but
              the last. Else derivatives are within `derivative_error` of the largest value.

Made data (`make`) have as many positive as negative elements, so that both branches occur; the
batteries assert it with `reference.assert_both_branches`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import bad_arguments
import reference
import torch
import torch.nn.functional as F
from cases import (
    CASES,
    DTYPE_PAIRS,
    EMPTY_CASES,
    LARGE_CASES,
    SMALL_CASES,
    case_weights,
    contiguous,
    dyadic_slopes,
    finite_slopes,
    forward_backward,
    integer_values,
    random_values,
)
from expected import Bits, Sum

import torch_ext  # noqa: F401  (registers the operators)


class Role(enum.Enum):
    DATA = "data"
    SLOPE = "slope"
    CHANNEL = "channel"


@dataclass(frozen=True)
class Argument:
    name: str
    role: Role
    differentiable: bool = True
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
    like: str = "input"  # the argument whose shape and dtype it has


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
    masks: tuple[str, ...] = ()  # keywords of settings that only leave results out
    mask: Callable | None = None  # of a setting: which results it leaves in; None: all
    exact: bool = True
    derivative_error: Callable | None = None  # of a dtype: in units of the largest value
    elementwise: bool = True  # DATA results depend on their own element and channel only
    saved: tuple[str, ...] | None = None  # what autograd keeps, and nothing else; None: no promise
    native: bool = True  # a kernel of its own for each dispatch key, in torch_ext's library
    copies_nothing: bool = True  # of dense inputs, and takes no memory but results and partial sums
    bad: dict = field(default_factory=dict)  # by name: bad_arguments.Bad
    dtypes: tuple = DTYPE_PAIRS  # of data and parameters: what it is tried with
    accepts: tuple = DTYPE_PAIRS  # the only ones that it takes
    cases: tuple = CASES
    empty_cases: tuple = EMPTY_CASES
    small_cases: tuple = SMALL_CASES  # for finite differences
    large_cases: tuple = LARGE_CASES  # for threads

    def __call__(self, *arguments, **setting):
        """The results: a tensor or None for each."""
        given = dict(zip(self.names, arguments, strict=True)) | setting
        results = self.call(**given)
        return (results,) if isinstance(results, torch.Tensor) else tuple(results)

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
        expected = self.oracle(*arguments, **setting)
        for result, expectation in zip(results, expected, strict=True):
            assert (result is None) == (expectation is None)
            if expectation is not None:
                expectation.check(result, exact)
        return results

    def assert_derivatives(self, actual, expected):
        """Those of exact data in any dtype, against float64 ones of the plain definition."""
        for one, other in zip(actual, expected, strict=True):
            assert (one is None) == (other is None)
            if one is None:
                continue
            assert one.shape == other.shape
            if self.exact:
                assert torch.equal(one.double(), other.to(one.dtype).double())
            else:
                error = (one.double() - other.double()).abs().max()
                assert error <= self.derivative_error(one.dtype) * other.double().abs().max()


# ---- Rows --------------------------------------------------------------------------------------


def _backward_oracle(grad_output, input, weight, output_mask):
    return (
        Bits(reference.grad_input(grad_output, input, weight)) if output_mask[0] else None,
        Sum(grad_output, input, weight) if output_mask[1] else None,
    )


def _pytorchs_backward(grad_output, input, weight, output_mask):
    gradients = forward_backward(F.prelu, input, weight, grad_output)[1:]
    return tuple(g if wanted else None for g, wanted in zip(gradients, output_mask))


INPUT = Argument("input", Role.DATA)
WEIGHT = Argument("weight", Role.SLOPE, every=case_weights)

PRELU = Operator(
    name="prelu",
    call=torch.ops.torch_ext.prelu,
    schema="torch_ext::prelu(Tensor input, Tensor weight) -> Tensor",
    arguments=(INPUT, WEIGHT),
    results=(Result("output", Role.DATA),),
    oracle=lambda input, weight: (Bits(reference.forward(input, weight)),),
    plain=lambda input, weight: (reference.plain(input, weight),),
    pytorch=lambda input, weight: (F.prelu(input, weight),),
    same_as_pytorch=("output",),
    backward=lambda *tensors: torch.ops.torch_ext.prelu_backward(*tensors, [True, True]),
    saved=("input", "weight"),
    bad=bad_arguments.PRELU,
)

PRELU_BACKWARD = Operator(
    name="prelu_backward",
    call=torch.ops.torch_ext.prelu_backward,
    schema="torch_ext::prelu_backward(Tensor grad_output, Tensor input, Tensor weight, "
    "bool[2] output_mask) -> (Tensor grad_input, Tensor grad_weight)",
    arguments=(Argument("grad_output", Role.DATA), INPUT, WEIGHT),
    results=(Result("grad_input", Role.DATA), Result("grad_weight", Role.SLOPE, "weight")),
    settings={
        "both": {"output_mask": [True, True]},
        "grad_input": {"output_mask": [True, False]},
        "grad_weight": {"output_mask": [False, True]},
        "neither": {"output_mask": [False, False]},
    },
    masks=("output_mask",),
    mask=lambda setting: setting["output_mask"],
    oracle=_backward_oracle,
    plain=reference.plain_backward,
    pytorch=_pytorchs_backward,
    same_as_pytorch=("grad_input",),
    bad=bad_arguments.PRELU_BACKWARD,
)

OPERATORS = (PRELU, PRELU_BACKWARD)
