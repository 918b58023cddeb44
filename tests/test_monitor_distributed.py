"""ActivationMonitor under torch.compile and DDP."""

import pytest
import torch
from monitored import figures, images, network, train
from torch import nn

from torch_ext import ActivationMonitor

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_compiled_model_is_monitored_between_its_graphs(fresh_compiler):
    model, twin = network(), network()
    model[1], twin[1] = nn.ReLU(), nn.ReLU()
    expected, found = ActivationMonitor(twin, window=2), ActivationMonitor(model, window=2)
    losses, _ = train(twin)
    compiled, _ = train(torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(compiled, losses)
    for ours, theirs in zip(figures(found), figures(expected), strict=True):
        for key in ("steps", "non_positive", "silent", "grad_output_norm", "grad_input_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


def test_fullgraph_is_refused_with_the_reason(fresh_compiler):
    model = network()
    monitor = ActivationMonitor(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="ActivationMonitor counts outside the graph"):
        compiled(images())
    monitor.close()
    torch.compiler.reset()
    assert compiled(images()).shape == (6, 2)


def monitored_steps():
    """What this process's monitor finds, and what it finds of all."""
    rank = torch.distributed.get_rank()
    model = nn.parallel.DistributedDataParallel(network())
    monitor = ActivationMonitor(model, window=2)
    for step in range(2):
        model(images(2 * step + rank)).square().mean().backward()
    return monitor.to_dict(), monitor.all_reduce().to_dict()


def test_all_reduce_joins_the_processes_of_ddp(two_processes):
    (own, joined), (other, joined_there) = two_processes.run(monitored_steps)
    assert joined == joined_there and joined["processes"] == 2
    assert own["layers"] != other["layers"]
    single = network()
    monitor = ActivationMonitor(single, window=2)
    for step in range(4):
        single(images(step)).square().mean().backward()
    for layer, one, two, whole in zip(
        joined["layers"], own["layers"], other["layers"], figures(monitor), strict=True
    ):
        assert layer["name"].startswith("module.") and layer["steps"] == 2
        by_channel = layer["by_channel"]
        assert layer["elements_per_channel"] == whole["elements_per_channel"]
        assert by_channel["non_positive"] == pytest.approx(whole["by_channel"]["non_positive"])
        assert by_channel["silent_steps"] == [
            min(pair) for pair in zip(*(each["by_channel"]["silent_steps"] for each in (one, two)))
        ]
        norms = [each["grad_output_norm"] for each in (one, two)]
        assert layer["grad_output_norm"] == pytest.approx(sum(norms) / 2)
