"""What PyTorch's profiler and its FLOP counter say about the operators."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, random_values
from reference import assert_same_bits
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.fixture
def leaves(device):
    input = random_values((4, 3, 5), torch.float32, device).requires_grad_()
    return input, finite_slopes((3,), torch.float32, device).requires_grad_()


def _profiled(run, **options):
    with profile(activities=[ProfilerActivity.CPU], acc_events=True, **options) as profiler:
        run()
    return profiler


def _events(profiler, name):
    return [event for event in profiler.events() if event.name == name]


# ---- Profiler ----------------------------------------------------------------------------------


def test_both_operators_and_the_node_have_names_and_shapes(leaves):
    profiler = _profiled(lambda: torch_ext.prelu(*leaves).sum().backward(), record_shapes=True)
    averages = {event.key: event for event in profiler.key_averages(group_by_input_shape=True)}
    shapes = {
        "torch_ext::prelu": [[4, 3, 5], [3]],
        "torch_ext::prelu_backward": [[4, 3, 5], [4, 3, 5], [3], []],
        "TorchExtPreluBackward": [[4, 3, 5]],
    }
    for name, expected in shapes.items():
        assert averages[name].count == 1
        assert averages[name].input_shapes == expected
    assert "torch_ext::prelu_backward" in profiler.key_averages().table()


def test_backward_is_linked_to_its_forward_and_holds_the_operator(leaves):
    """By autograd's sequence number, which the trace's arrows are drawn from."""
    profiler = _profiled(lambda: [prelu(*leaves).sum().backward() for _ in range(2)])
    forwards, nodes = (
        _events(profiler, name) for name in ("torch_ext::prelu", "TorchExtPreluBackward")
    )
    numbers = [event.sequence_nr for event in forwards]
    assert len(numbers) == len(set(numbers)) == 2 and min(numbers) >= 0
    assert [event.sequence_nr for event in nodes] == numbers
    for event in _events(profiler, "torch_ext::prelu_backward"):
        assert event.cpu_parent.name == "TorchExtPreluBackward"


def test_one_call_is_one_event_with_or_without_a_graph(leaves):
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            profiler = _profiled(lambda: prelu(*leaves))
        assert len(_events(profiler, "torch_ext::prelu")) == 1
    direct = _profiled(lambda: prelu_backward(leaves[0], *leaves, [True, True]))
    assert len(_events(direct, "torch_ext::prelu_backward")) == 1


def test_the_cast_of_autocast_is_seen_inside_the_call(leaves):
    def run():
        with torch.autocast(leaves[0].device.type, dtype=torch.bfloat16):
            prelu(*leaves)

    profiler = _profiled(run)
    (cast,) = _events(profiler, "aten::_to_copy")
    assert cast.cpu_parent.cpu_parent.name == "torch_ext::prelu"


def test_an_exported_trace_holds_them(leaves, tmp_path):
    profiler = _profiled(
        lambda: prelu(*leaves).sum().backward(),
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
        with_flops=True,
    )
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    events = {event["name"]: event for event in trace if event.get("cat") == "cpu_op"}
    assert events["torch_ext::prelu"]["args"]["Input Dims"] == [[4, 3, 5], [3]]
    assert {"TorchExtPreluBackward", "torch_ext::prelu_backward"} <= set(events)


def test_a_profiled_call_has_the_bits_of_any_other(leaves):
    expected = torch.autograd.grad(prelu(*leaves).sum(), leaves)
    results = []
    _profiled(lambda: results.extend(torch.autograd.grad(prelu(*leaves).sum(), leaves)))
    for result, expectation in zip(results, expected):
        assert_same_bits(result, expectation)


# ---- FLOP counter ------------------------------------------------------------------------------
#
# torch.utils.flop_counter counts matrix products and convolutions. Elementwise operators, stock's
# prelu among them, have no formula and count nothing; ours have none either, so that figures of a
# model do not change with a swap.


def _counted(run, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FlopCounterMode(display=False, **options) as counter:
            run()
    return counter


def _model(device):
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
        nn.PReLU(),
    )
    return nn.Sequential(*layers).to(device)


def test_a_swapped_model_counts_what_the_stock_model_counts(device):
    model = _model(device)
    input = random_values((2, 3, 8, 8), torch.float32, device)

    def step():
        model(input).sum().backward()

    stock = _counted(step)
    torch_ext.replace_prelu(model)
    ours = _counted(step)
    assert stock.get_total_flops() > 0
    assert ours.get_total_flops() == stock.get_total_flops()
    assert ours.get_flop_counts() == stock.get_flop_counts()  # by module and operator


@pytest.mark.parametrize("operator", (torch_ext.prelu, F.prelu), ids=("ours", "stock"))
def test_the_operator_alone_counts_nothing_in_any_order(operator, leaves):
    def second_order():
        first = torch.autograd.grad(operator(*leaves).sum(), leaves, create_graph=True)
        (first[0].sum() + first[1].sum()).backward()

    def per_sample():
        torch.func.vmap(operator, in_dims=(0, None))(leaves[0][:, None], leaves[1])

    for run in (lambda: operator(*leaves), second_order, per_sample):
        assert _counted(run).get_total_flops() == 0


def test_a_formula_of_the_users_own_is_taken(leaves):
    """Who wants elementwise work counted says how much it is."""
    counter = _counted(
        lambda: prelu(*leaves).sum().backward(),
        custom_mapping={
            prelu: lambda input, weight, **_: torch.Size(input).numel(),
            prelu_backward: lambda grad, input, weight, mask, **_: 4 * torch.Size(input).numel(),
        },
    )
    assert counter.get_total_flops() == 60 + 4 * 60
