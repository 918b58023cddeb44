"""CUDA graphs: captured once, replayed on new data, with the bits of eager execution."""

import copy

import pytest
import torch
from cases import Case, channels_last, finite_slopes, forward_backward, random_values
from cuda_testing import REPEATS, Busy, needs_gpu, prelu, prelu_backward, run
from reference import assert_both_branches, assert_same_bits
from torch import nn

import torch_ext

pytestmark = needs_gpu

CASES = (
    Case("planes", (4, 16, 33, 35), (16,)),
    Case("split_planes", (16, 2, 300, 301), (2,)),
    Case("channels_last", (4, 19, 40, 40), (19,), channels_last),
    Case("tall_rows", (50_021, 5), (5,)),
    Case("one_slope", (300_007,), ()),
    Case("small", (3, 8, 5), (8,)),
)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def _data(case, dtype, seed):
    return case.layout(random_values(case.shape, dtype, "cuda", seed=seed))


def _captured(function):
    """A graph of one call, and its results; warmed up on the stream that is then captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def test_replays_of_the_operators_have_the_bits_of_eager(case, dtypes):
    dtype, weight_dtype = dtypes
    input, grad_output = _data(case, dtype, 1), _data(case, dtype, 2)
    weight = finite_slopes(case.slopes, weight_dtype, "cuda")
    graph, results = _captured(
        lambda: (
            prelu(input, weight),
            *prelu_backward(grad_output, input, weight, [True, True]),
        )
    )
    for replay in range(5):
        input.copy_(_data(case, dtype, 10 + replay))
        grad_output.copy_(_data(case, dtype, 20 + replay))
        expected = run(input, weight, grad_output)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        assert_both_branches(input, *expected)
        for result, expectation in zip(results, expected):
            assert_same_bits(result, expectation)


def test_a_training_step_is_captured_and_replayed_a_hundred_times():
    """Forward, backward and optimizer in one graph; an eager twin takes the same steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        torch_ext.PReLU(8),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 10),
        torch_ext.PReLU(),
    ).cuda()
    twin = copy.deepcopy(model)
    input = random_values((4, 3, 12, 12), torch.float32, "cuda", seed=1)
    steps = [_step(one, input) for one in (model, twin)]
    # Warming up takes steps, too: both models take them.
    graph, _ = _captured(steps[0])
    for _ in range(3):
        steps[1]()
    for replay in range(REPEATS):
        input.copy_(random_values(input.shape, torch.float32, "cuda", seed=100 + replay))
        graph.replay()
        steps[1]()
    slopes = [module.weight for module in model.modules() if isinstance(module, nn.PReLU)]
    assert all((slope != 0.25).any() for slope in slopes)
    for parameter, expected in zip(model.parameters(), twin.parameters()):
        # Convolutions and products choose algorithms; ours would be equal to the bit.
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


def _step(model, input):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(input).square().mean().backward()
        optimizer.step()

    return step


def test_a_step_of_prelu_alone_has_the_bits_of_eager(case, dtypes):
    """A hundred steps in which the slope learns: one wrong bit would stay."""
    dtype, weight_dtype = dtypes
    input, grad_output = _data(case, dtype, 1), _data(case, dtype, 2)
    weights = [finite_slopes(case.slopes, weight_dtype, "cuda") for _ in range(2)]

    def step(weight):
        _, grad_input, grad_weight = forward_backward(prelu, input, weight, grad_output)
        weight.sub_(grad_weight * (0.05 * input.numel() ** -0.5))
        return grad_input

    graph, _ = _captured(lambda: step(weights[0]))
    for _ in range(3):
        step(weights[1])
    before = weights[1].clone()
    for replay in range(REPEATS):
        if replay % 10 == 0:
            input.copy_(_data(case, dtype, 50 + replay))
        graph.replay()
        step(weights[1])
    assert (weights[1] != before).any()
    assert_same_bits(weights[0], weights[1])


def test_two_graphs_replayed_at_the_same_time_do_not_disturb_each_other():
    """Each has a workspace of its own pool."""
    problems = [
        (_data(case, torch.float32, 1), _data(case, torch.float32, 2)) for case in CASES[1:3]
    ]
    weights = [finite_slopes(case.slopes, torch.float32, "cuda") for case in CASES[1:3]]
    expected, graphs = [], []
    for (input, grad_output), weight in zip(problems, weights):
        arguments = grad_output, input, weight, [True, True]
        expected.append(prelu_backward(*arguments))
        graphs.append(_captured(lambda arguments=arguments: prelu_backward(*arguments)))
    streams = [torch.cuda.Stream() for _ in graphs]
    busy = Busy()
    torch.cuda.synchronize()
    for _ in range(50):
        busy.more()
        for (graph, _), stream in zip(graphs, streams):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for (_, results), expectations in zip(graphs, expected):
        for result, expectation in zip(results, expectations):
            assert_same_bits(result, expectation)


def test_make_graphed_callables_takes_the_module():
    module = torch_ext.PReLU(16).cuda()
    sample = random_values((4, 16, 9, 9), torch.float32, "cuda", seed=1).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(module), (sample,))
    input = random_values((4, 16, 9, 9), torch.float32, "cuda", seed=2)
    grad_output = random_values((4, 16, 9, 9), torch.float32, "cuda", seed=3)
    expected = run(input, module.weight, grad_output)
    leaf = input.clone().requires_grad_()
    output = graphed(leaf)
    output.backward(grad_output)
    assert_both_branches(input, *expected)
    assert_same_bits(output.detach(), expected[0])
    assert_same_bits(leaf.grad, expected[1])
    assert_same_bits(next(graphed.parameters()).grad, expected[2])
