"""torch.compile and torch.export see one whole operator, for any sizes, and keep its results."""

import pytest
import torch
from batteries import (
    CASES,
    DTYPES,
    ELEMENT_SIZES,
    SETTINGS,
    battery,
    each,
    first_setting,
    is_native,
    some,
)
from cases import Case, channels_last, random_values, significant_strides
from operator_rows import Role
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import cotangents, leaves_of, present, small_integers, subsets, wanted
from torch._dynamo.testing import CompileCounterWithBackend

# torch's own, raised while it compiles
pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(operator, setting=None):
    """The operator between operations that a compiler would like to fuse with it."""
    setting = first_setting(operator) if setting is None else setting
    call = operator.call
    names, at = operator.names, operator.place("input")

    def function(*tensors):
        given = dict(zip(names, tensors)) | {names[at]: tensors[at] * 2} | setting
        results = call(**given)
        results = (results,) if isinstance(results, torch.Tensor) else results
        return tuple(result + 1 for result in results if result is not None)

    return function


def _run(function, operator, arguments, needed=None, values=random_values):
    leaves = leaves_of(operator, arguments, needed)
    results = function(*leaves)
    outputs = [result for result in results if result.requires_grad]
    gradients = ()
    if outputs:
        gradients = torch.autograd.grad(outputs, wanted(leaves), cotangents(outputs, values))
    return [result.detach() for result in results], list(gradients)


def _assert_equals_eager(compiled, operator, arguments, needed=None, values=random_values):
    """To the bit. Results lie in memory as in eager; so do the gradients of forward operators. (Those of backward
    operators are composed: where they lie is the compiler's choice, and for some the last bits are, too.)"""
    actual = _run(compiled, operator, arguments, needed, values)
    expected = _run(layer(operator), operator, arguments, needed, values)
    assert_both_branches(arguments[operator.place("input")], *expected[0], *expected[1])
    for some_actual, some_expected in zip(actual, expected, strict=True):
        composed = some_actual is actual[1] and operator.data != ["input"]
        if composed and not operator.graph_keeps_bits:
            operator.assert_near(some_actual, some_expected)
            continue
        for one, other in zip(some_actual, some_expected, strict=True):
            assert_same_bits(one, other)
            if not composed:
                assert significant_strides(one) == significant_strides(other)


# ---- torch.compile -----------------------------------------------------------------------------

COMPILED = some(CASES, "image", "image_channels_last", "rows", "shared_0d_weight", "sliced")


def compiled_layer(operator, setting=None, backend="aot_eager", **options):
    return torch.compile(layer(operator, setting), fullgraph=True, backend=backend, **options)


@battery(case=COMPILED, dynamic=each({"static": False, "dynamic": True}))
def test_a_compiled_step_has_the_bits_of_eager(operator, case, dynamic, device):
    arguments = operator.make(case, (torch.float32, torch.float32), device)
    _assert_equals_eager(compiled_layer(operator, dynamic=dynamic), operator, arguments)


@battery(dtypes=DTYPES)
def test_a_compiled_step_of_every_dtype_has_the_bits_of_eager(operator, dtypes, device):
    arguments = operator.make(Case("dtypes", (4, 16, 9, 9), (16,)), dtypes, device)
    _assert_equals_eager(compiled_layer(operator), operator, arguments)


@battery(setting=SETTINGS)
def test_every_setting_compiles(operator, setting, device):
    arguments = operator.make(Case("settings", (3, 4, 5), (4,)), operator.dtypes[0], device)
    compiled = compiled_layer(operator, setting)
    for one, other in zip(compiled(*arguments), layer(operator, setting)(*arguments), strict=True):
        assert_same_bits(one, other)


@battery(needed=subsets)
def test_gradients_of_some_operands_compile(operator, needed, device):
    arguments = operator.make(Case("frozen", (3, 4, 5), (4,)), operator.dtypes[0], device)
    _assert_equals_eager(compiled_layer(operator), operator, arguments, needed=needed)


@battery(dynamic=each({"told": True, "untold": None}))
def test_another_size_does_not_compile_again(operator, dynamic, device):
    """With symbolic sizes one graph serves all shapes of a rank, channels included. Untold, the second size makes
    what changes symbolic, and that is all. (A float such as eps makes the first compilation start anew.)"""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compiled_layer(operator, backend=counter, dynamic=dynamic)
    told = ((3, 6, 5, 7), (4, 9, 8, 5), (2, 33, 3, 4))
    untold = ((3, 6, 5, 7), (4, 6, 8, 9), (2, 6, 3, 4), (9, 6, 11, 13), (5, 6, 70, 2))
    counts = []
    for shape in told if dynamic else untold:
        case = Case("sizes", shape, shape[1:2])
        arguments = operator.make(case, operator.dtypes[0], device)
        _assert_equals_eager(compiled, operator, arguments)
        counts.append(counter.frame_count)
    assert counts[-1] - counts[0] == (0 if dynamic else 1)


@battery(
    lambda o: o.most is None,
    dtypes=lambda o: {k: v for k, v in DTYPES(o).items() if v[1] == torch.float32},
)
def test_inductor_keeps_the_results(operator, dtypes, device):
    """To the bit, for integers: sums that are exact in any order. test_inductor.py has the policies."""
    case = Case("inductor", (3, 6, 5, 7), (6,), channels_last)
    arguments = operator.make(case, dtypes, device, dyadic=True)
    compiled = compiled_layer(operator, backend="inductor")
    _assert_equals_eager(compiled, operator, arguments, values=small_integers)


# ---- Compiled autograd ---------------------------------------------------------------------------


def _backward(outputs, gradients, backend):
    if backend is None:
        return torch.autograd.backward(outputs, gradients)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True)):
        torch.autograd.backward(outputs, gradients)


def some_results(operator):
    settings = SETTINGS(operator).items()
    return {name: s for name, s in settings if any(s.get("output_mask", [True]))}


@battery(setting=some_results)
def test_compiled_autograd_runs_the_backward(operator, setting, device):
    """Of a graph that eager code has made."""
    arguments = operator.make(Case("backward", (3, 4, 5), (4,)), operator.dtypes[0], device)

    def gradients(backend):
        leaves = leaves_of(operator, arguments)
        outputs = [y for y in layer(operator, setting)(*leaves) if y.requires_grad]
        _backward(outputs, cotangents(outputs), backend)
        return [leaf.grad for leaf in leaves]

    expected = gradients(None)
    assert any(gradient is not None and gradient.norm() > 0 for gradient in expected)
    for actual, right in zip(gradients("aot_eager"), expected, strict=True):
        assert (actual is None) == (right is None)
        if right is None:
            continue
        if operator.graph_keeps_bits:
            assert_same_bits(actual, right)
        else:
            torch.testing.assert_close(actual, right)


@battery(lambda o: o.data == ["input"] and "._" not in o.schema_name)
def test_compiled_autograd_runs_a_graph_that_holds_a_gradient(operator, device):
    """A penalty on the gradients, and the results themselves. (Of what users call; the others are part of it.)"""
    dtypes = (torch.float64, torch.float64)
    arguments = operator.make(Case("penalty", (3, 4, 5), (4,)), dtypes, device)

    def gradients(backend):
        leaves = leaves_of(operator, arguments)
        outputs = [y for y in layer(operator)(*leaves) if y.requires_grad]
        first = torch.autograd.grad(outputs, wanted(leaves), cotangents(outputs), create_graph=True)
        _backward(sum((t * t).sum() for t in (*outputs, *first)), None, backend)
        return [leaf.grad for leaf in wanted(leaves)]

    actual, expected = gradients("aot_eager"), gradients(None)
    assert_both_branches(arguments[operator.place("input")], *expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


# ---- Exported programs -------------------------------------------------------------------------


class Exported(torch.nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.function = layer(operator)

    def forward(self, *tensors):
        return self.function(*tensors)


@battery(is_native, dtypes=ELEMENT_SIZES, strict=each({"strict": True, "non_strict": False}))
def test_an_exported_program_holds_the_operator_whole_for_any_sizes(operator, dtypes, strict):
    """Also after decomposition; only what the operator itself demands becomes a constraint."""
    model = Exported(operator)
    auto = torch.export.Dim.AUTO
    sizes = [
        {0: auto, 1: auto, 2: auto} if argument.role is Role.DATA else {0: auto}
        for argument in operator.arguments
    ]
    arguments = operator.make(Case("export", (3, 5, 7), (5,)), dtypes)
    program = torch.export.export(
        model, tuple(arguments), dynamic_shapes=(tuple(sizes),), strict=strict
    )
    for form in (program, program.run_decompositions()):
        called = [str(n.target) for n in form.graph.nodes if n.op == "call_function"]
        assert called.count(operator.schema_name) == 1
    for shape in ((2, 9, 4), (8, 2, 3), (3, 5, 7)):
        others = operator.make(Case("other sizes", shape, shape[1:2]), dtypes)
        results = present(model(*others))
        assert_both_branches(others[operator.place("input")], *results)
        for one, other in zip(program.module()(*others), results, strict=True):
            assert_same_bits(one, other)
