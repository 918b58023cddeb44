"""Entering and leaving torch_ext.override_aten: nested, overlapping, as a decorator, in threads."""

import threading

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, forward_backward, integer_values, random_values
from installed import run_python
from profiled import (
    OURS_AND_BACKWARD,
    STOCK_AND_BACKWARD,
    kernels,
    stock_before_and_after,  # noqa: F401  (a fixture)
)
from reference import assert_both_branches, assert_same_bits

import torch_ext

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("on_device", "stock_before_and_after")]


def step():
    input, weight = random_values((4, 3, 5), torch.float32), finite_slopes((3,), torch.float32)
    return lambda: forward_backward(F.prelu, input, weight, input)


def test_nested_contexts_end_with_the_outermost():
    with torch_ext.override_aten():
        with torch_ext.override_aten():
            assert kernels(step()) == OURS_AND_BACKWARD
        assert kernels(step()) == OURS_AND_BACKWARD


def test_one_object_may_be_entered_again_and_again():
    override = torch_ext.override_aten()
    for _ in range(2):
        with override, override:
            assert kernels(step()) == OURS_AND_BACKWARD
        assert kernels(step()) == STOCK_AND_BACKWARD


def test_contexts_may_overlap_without_nesting():
    first, second = torch_ext.override_aten(), torch_ext.override_aten()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert kernels(step()) == OURS_AND_BACKWARD
    second.__exit__(None, None, None)
    assert kernels(step()) == STOCK_AND_BACKWARD


def test_an_exception_leaves_it_and_goes_on():
    with (
        pytest.raises(RuntimeError, match="Mismatch of parameter numbers"),
        torch_ext.override_aten(),
    ):
        F.prelu(torch.ones(2, 3), torch.ones(7))
    assert kernels(step()) == STOCK_AND_BACKWARD


def test_it_decorates_a_function_and_stays_out_of_it_before_and_after():
    @torch_ext.override_aten()
    def run(scale, *, fail=False):
        """Its own words."""
        names = kernels(step())
        if fail:
            raise ValueError(scale)
        return names, scale

    assert run.__doc__ == "Its own words."
    assert run(3) == (OURS_AND_BACKWARD, 3)
    with pytest.raises(ValueError, match="4"):
        run(4, fail=True)
    assert kernels(step()) == STOCK_AND_BACKWARD


def test_it_refuses_functions_that_run_after_they_returned():
    def generator():
        yield

    async def coroutine():
        pass

    async def both():
        yield

    for function in (generator, coroutine, both):
        with pytest.raises(TypeError, match="cannot decorate a generator or a coroutine"):
            torch_ext.override_aten()(function)


def test_leaving_twice_is_refused_and_takes_nothing_from_others():
    override = torch_ext.override_aten()
    with pytest.raises(RuntimeError, match="left more often than entered"):
        override.__exit__(None, None, None)
    with torch_ext.override_aten():
        with override:
            pass
        with pytest.raises(RuntimeError, match="left more often than entered"):
            override.__exit__(None, None, None)
        assert kernels(step()) == OURS_AND_BACKWARD


def test_another_librarys_prelu_is_not_taken_over():
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("prelu", lambda input, weight: input * 100, "CPU")
        with pytest.raises(RuntimeError, match="another library has replaced it for CPU"):
            torch_ext.override_aten().__enter__()
    with torch_ext.override_aten():
        assert kernels(step()) == OURS_AND_BACKWARD


def test_another_librarys_prelu_is_noticed_when_it_comes_later():
    """In place of the same kernel, which ours was until then."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("prelu", lambda input, weight: input * 100, "CompositeImplicitAutograd")
        assert F.prelu(torch.ones(2), torch.ones(1)).tolist() == [100.0, 100.0]
        with pytest.raises(RuntimeError, match="another library has replaced it for Composite"):
            torch_ext.override_aten().__enter__()
    with torch_ext.override_aten():
        assert kernels(step()) == OURS_AND_BACKWARD


# ---- The first one of a process ----------------------------------------------------------------

FIRST = """
import warnings
import torch, torch_ext
import torch.nn.functional as F

def kernels():
    return torch._C._dispatch_dump("aten::prelu")

warnings.simplefilter("error")
before = kernels()
assert "override_aten" not in before
"""


def run(program):
    assert run_python(FIRST + program).stderr == ""


def test_pytorchs_kernel_is_its_own_until_the_first_override():
    run("""
always = torch.is_warn_always_enabled()
for _ in range(2):
    with torch_ext.override_aten():
        leaf = torch.ones(1, requires_grad=True)
        assert F.prelu(leaf, leaf).grad_fn.name() == "TorchExtPreluBackward"
    assert kernels().count("override_aten") == 1
    assert F.prelu(leaf, leaf).grad_fn.name() == "PreluKernelBackward0"
assert torch.is_warn_always_enabled() == always
""")


def test_another_librarys_earlier_prelu_stays():
    run("""
warnings.simplefilter("ignore")  # PyTorch's, about this
theirs = torch.library.Library("aten", "IMPL")
theirs.impl("prelu", lambda input, weight: input * 100, "CompositeImplicitAutograd")
try:
    torch_ext.override_aten().__enter__()
except RuntimeError as error:
    assert "another library has replaced it for CompositeImplicitAutograd" in str(error)
else:
    raise AssertionError
assert "override_aten" not in kernels()
assert F.prelu(torch.ones(2), torch.ones(1)).tolist() == [100.0, 100.0]
""")


# ---- Threads -----------------------------------------------------------------------------------


def run_in_threads(count, work):
    failures = []

    def guarded(index):
        try:
            work(index)
        except BaseException as failure:  # noqa: BLE001  (raised again below)
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_it_holds_in_every_thread():
    seen = []
    with torch_ext.override_aten():
        run_in_threads(1, lambda _: seen.append(kernels(step())))
    run_in_threads(1, lambda _: seen.append(kernels(step())))
    assert seen == [OURS_AND_BACKWARD, STOCK_AND_BACKWARD]


def test_a_thread_may_leave_what_another_one_entered():
    override = torch_ext.override_aten()
    override.__enter__()
    run_in_threads(1, lambda _: override.__exit__(None, None, None))
    assert kernels(step()) == STOCK_AND_BACKWARD


@pytest.mark.parametrize("shared", (False, True), ids=("own_objects", "one_object"))
def test_threads_that_enter_leave_and_compute_at_once_get_right_results(shared):
    """Half of the threads only compute: their kernels change under them at any moment."""
    input, weight, grad_output = (
        integer_values((6, 3, 5), torch.float32, seed=1),
        finite_slopes((3,), torch.float32),
        integer_values((6, 3, 5), torch.float32, seed=2),
    )
    assert_both_branches(input)
    expected = forward_backward(F.prelu, input, weight, grad_output)
    one = torch_ext.override_aten()
    nodes = set()

    def compute():
        leaf = input.clone().requires_grad_()
        output = F.prelu(leaf, weight)
        nodes.add(output.grad_fn.name())
        assert_same_bits(output, expected[0])
        assert_same_bits(torch.autograd.grad(output, leaf, grad_output)[0], expected[1])

    def work(index):
        for _ in range(400):
            if index % 2:
                compute()
            else:
                with one if shared else torch_ext.override_aten():
                    leaf = input.clone().requires_grad_()
                    assert F.prelu(leaf, weight).grad_fn.name() == "TorchExtPreluBackward"
                    compute()

    run_in_threads(8, work)
    compute()
    assert nodes == {"TorchExtPreluBackward", "PreluKernelBackward0"}
