"""What holds for every problem, tried on thousands of random ones: any shape, any place in memory, any dtypes.

A failure is shrunk to a small one and printed as a line that runs it alone. The problems are the
same in every run; `pytest -m full` draws ten times as many, new ones each time.
"""

import itertools

import numpy as np
import pytest
import torch
from batteries import battery, first_setting
from hypothesis import HealthCheck, given, note, settings
from operators import OPERATORS
from problems import Placement, Problem, problems  # noqa: F401  (the printed lines use them)
from reference import assert_same_bits
from test_battery_autograd import leaves_of, present, wanted
from test_battery_layouts import assert_places

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
MANY = settings(max_examples=1500, derandomize=True, **COMMON)
SOME = settings(MANY, max_examples=40)
FULL = settings(max_examples=20_000, **COMMON)


def row(name):
    return next(operator for operator in OPERATORS if operator.name == name)


def check(operator, problem):
    """Values and layouts of results with every setting; and gradients, of the operands that need some. Returns the
    arguments."""
    arguments = problem.arguments(operator)
    for setting in operator.settings.values():
        results = operator.check(arguments, setting, exact=operator.exact)
        assert_places(operator, arguments, setting, results)
    if operator.backward is None:
        return arguments
    needs = zip(operator.arguments, itertools.cycle(problem.needs))
    needed = [argument.name for argument, need in needs if need and argument.differentiable]
    leaves = leaves_of(operator, arguments, needed)
    results = operator.derivable(operator(*leaves, **first_setting(operator)))
    assert all(result.requires_grad == bool(needed) for result in results)
    if needed:
        grads = [problem.like(result, index) for index, result in enumerate(results)]
        expected = present(operator.backward(*grads, *arguments))
        names = [argument.name for argument in operator.arguments if argument.differentiable]
        gradients = torch.autograd.grad(results, wanted(leaves), grads)
        chosen = [tensor for name, tensor in zip(names, expected) if name in needed]
        for one, other in zip(gradients, chosen, strict=True):
            assert_same_bits(one, other)
    return arguments


def _run(operator, how):
    seen = {"problems": 0, "positive": 0, "others": 0}

    @how
    @given(problems().filter(operator.takes))
    def try_it(problem):
        call = f'check(row("{operator.name}"), {problem})'
        note(f"python -c 'from test_battery_random import *; {call}'")
        input = check(operator, problem)[operator.place("input")]
        positive = (input > 0).sum().item()
        seen["problems"] += 1
        seen["positive"] += positive
        seen["others"] += np.prod(problem.shape, dtype=int) - positive

    try_it()
    assert seen["problems"] >= how.max_examples, "Hypothesis found fewer problems"
    assert 1 / 3 < seen["positive"] / seen["others"] < 3, "one branch hardly occurred"


@pytest.mark.contract
@battery()
def test_random_problems(operator):
    _run(operator, MANY if operator.most is None else SOME)


@pytest.mark.full
@battery()
def test_many_random_problems(operator):
    _run(operator, FULL)
