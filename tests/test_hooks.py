"""Hooks, anomaly mode, saved tensors, a graph used twice and changes in place: as with PyTorch's."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, integer_values, random_values
from recorder import Recorder
from reference import assert_both_branches, assert_same_bits
from torch.autograd import graph

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.fixture
def leaves(device):
    input = integer_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = torch.tensor([-0.5, 0.25, 2.0, 1.0], device=device).requires_grad_()
    assert_both_branches(input)
    return input, weight


def _gradients(input, weight):
    """Of the sum of the output."""
    ones = torch.ones_like(input)
    return prelu_backward(ones, input.detach(), weight.detach(), [True, True])


def _assert_gradients(leaves, expected):
    for leaf, gradient in zip(leaves, expected):
        assert_same_bits(leaf.grad, gradient)


# ---- Hooks -------------------------------------------------------------------------------------


def test_hooks_of_tensors_and_of_the_node_run_in_order(leaves):
    input, weight = leaves
    calls = []

    def note(name, result=None):
        return lambda *gradients: calls.append(name) or result

    output = prelu(input, weight)
    output.retain_grad()
    output.register_hook(lambda gradient: calls.append("output") or 2 * gradient)
    output.grad_fn.register_prehook(note("before the node"))
    output.grad_fn.register_hook(lambda inputs, outputs: calls.append((len(inputs), len(outputs))))
    input.register_hook(note("input"))
    input.register_post_accumulate_grad_hook(note("input accumulated"))
    output.sum().backward()
    assert calls == ["output", "before the node", (2, 1), "input", "input accumulated"]
    assert (output.grad == 2).all()
    _assert_gradients(leaves, [2 * gradient for gradient in _gradients(input, weight)])


def test_what_hooks_return_takes_the_place_of_gradients(leaves):
    input, weight = leaves
    expected_input, expected_weight = _gradients(input, weight)
    output = prelu(input, weight)
    output.grad_fn.register_prehook(lambda outputs: tuple(4 * gradient for gradient in outputs))
    output.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] / 2, inputs[1] / 4))
    output.sum().backward()
    _assert_gradients(leaves, (2 * expected_input, expected_weight))


def test_a_node_that_passes_on_no_gradient_gives_none(leaves):
    """An undefined grad_output: the other branch of the graph alone counts."""

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            return input.clone()

        @staticmethod
        def backward(ctx, grad_output):
            return None

    input, weight = leaves
    (Stop.apply(prelu(input, weight)).sum() + input.sum()).backward()
    assert (input.grad == 1).all() and weight.grad is None


def test_hooks_of_several_tensors_and_of_the_module_run(device):
    module = torch_ext.PReLU(4, device=device)
    input = integer_values((3, 4, 5), torch.float32, device).requires_grad_()
    seen = {}
    module.register_full_backward_pre_hook(lambda m, outputs: seen.update(before=outputs))
    module.register_full_backward_hook(lambda m, inputs, outputs: seen.update(after=inputs))
    graph.register_multi_grad_hook(
        (input, module.weight), lambda gradients: seen.update(all=gradients)
    )
    module(input).sum().backward()
    expected = _gradients(input, module.weight)
    assert_same_bits(seen["before"][0], torch.ones_like(input))
    assert_same_bits(seen["after"][0], expected[0])
    for gradient, other in zip(seen["all"], expected):
        assert_same_bits(gradient, other)


def test_the_node_is_one_of_autograds(leaves):
    input, weight = leaves
    node = prelu(input, weight).grad_fn
    assert node.name() == "TorchExtPreluBackward"
    assert [edge.variable for edge, _ in node.next_functions] == list(leaves)
    node.metadata["key"] = 1
    assert node.metadata == {"key": 1}
    edge = graph.get_gradient_edge(prelu(input, weight))
    gradients = torch.autograd.grad(edge, leaves, torch.ones_like(input))
    for gradient, expected in zip(gradients, _gradients(input, weight)):
        assert_same_bits(gradient, expected)


# ---- Anomaly mode ------------------------------------------------------------------------------


def _call_that_makes_a_nan(input, weight):
    return prelu(input, weight)


@pytest.mark.parametrize("second_order", (False, True), ids=("first_order", "second_order"))
def test_anomaly_mode_names_the_node_and_the_line_of_its_forward(second_order, device):
    """0 times an infinite slope is NaN in the gradient of the input."""
    input = torch.tensor([[-1.0, 2.0]], device=device).requires_grad_()
    weight = torch.tensor([float("inf"), 1.0], device=device).requires_grad_()
    zero = torch.zeros_like(input).requires_grad_()
    with warnings.catch_warnings(record=True) as caught, torch.autograd.detect_anomaly():
        warnings.simplefilter("always")
        output = _call_that_makes_a_nan(input, weight)
        with pytest.raises(RuntimeError, match="'TorchExtPreluBackward' returned nan values"):
            torch.autograd.grad(output, (input, weight), zero, create_graph=second_order)
    (message,) = [str(w.message) for w in caught if "Error detected" in str(w.message)]
    assert message.startswith("Error detected in TorchExtPreluBackward.")
    assert "_call_that_makes_a_nan" in message and __file__ in message


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_finds_nothing_in_finite_gradients(leaves):
    with torch.autograd.detect_anomaly():
        gradients = torch.autograd.grad(prelu(*leaves).sum(), leaves, create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


# ---- Saved tensors -----------------------------------------------------------------------------


def test_it_runs_where_saving_hooks_are_forbidden(leaves):
    with graph.disable_saved_tensors_hooks("not here"):
        prelu(*leaves).sum().backward()


# ---- Which gradients -------------------------------------------------------------------------------


def test_a_gradient_that_nobody_asks_for_is_not_computed(device):
    """autograd.grad for one of the two gives prelu_backward the mask of that one."""

    def mask(operator, args):
        return list(args[3]) if operator is prelu_backward.default else None

    input = random_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device).requires_grad_()
    with Recorder(mask) as recorder:
        for wanted in (input, weight, (input, weight)):
            torch.autograd.grad(prelu(input, weight).sum(), wanted)
        torch.autograd.grad(prelu(input, weight.detach()).sum(), input)
    masks = [seen for seen in recorder.seen if seen]
    assert masks == [[True, False], [False, True], [True, True], [True, False]]


def test_one_weight_used_twice_gets_the_sum_of_both_gradients(device):
    input = integer_values((3, 4, 5), torch.float64, device).requires_grad_()
    weight = torch.tensor(
        [-0.5, 0.25, 2.0, 1.0], dtype=torch.float64, device=device
    ).requires_grad_()
    ours = torch.autograd.grad(prelu(prelu(input, weight), weight).sum(), (input, weight))
    pytorchs = torch.autograd.grad(F.prelu(F.prelu(input, weight), weight).sum(), (input, weight))
    assert_both_branches(input, *ours)
    assert all(torch.equal(*pair) for pair in zip(ours, pytorchs))


def test_inputs_that_are_not_leaves_and_unused_outputs_are_fine(device):
    base = random_values((3, 4, 10), torch.float64, device).requires_grad_()
    weight = finite_slopes((4,), torch.float64, device).requires_grad_()
    output = prelu(base[..., ::2], weight.expand(4))
    grads = torch.autograd.grad(output[:0].sum() + output[1].sum(), (base, weight))
    assert (
        (grads[0][[0, 2]] == 0).all()
        and (grads[0][1, :, ::2] != 0).any()
        and (grads[0][..., 1::2] == 0).all()
    )
    unused = torch.autograd.grad(base.sum(), weight, allow_unused=True)
    assert unused == (None,)
