"""A small network whose gradients are exact in float32, in whatever order they are summed.

Weights and data are small integers and slopes are small fractions with a power of two below, so
that runs which split a batch or a layer differently must give the same bits.
"""

import torch
from cases import integer_values
from reference import assert_both_branches
from torch import nn

import torch_ext

SLOPES = (-0.5, 0.25, 2.0, -1.0, 0.5, 0.0, 1.5, 0.75)
SAMPLES = 8  # a power of two, so that means are exact too
LEARNING_RATE = 2.0**-8


def network(prelu=torch_ext.PReLU):
    """A slope per channel, then one slope; as many inputs are negative as positive."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        prelu(8),
        nn.Conv2d(8, 4, 1),
        prelu(),
        nn.Flatten(),
        nn.Linear(36, 5),
    )
    return fill(model)


def features(prelu=torch_ext.PReLU):
    """For tensor parallelism: a layer that is split by its outputs, and one by its inputs."""
    return fill(nn.Sequential(nn.Linear(12, 8), prelu(8), nn.Linear(8, 4)))


def fill(model):
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.PReLU):
                parameter.copy_(torch.tensor(SLOPES[: parameter.numel()]))
            else:
                parameter.copy_(
                    integer_values(parameter.shape, torch.float32, seed=seed, largest=2)
                )
    return model


def batch(shape=(SAMPLES, 3, 3, 3), outputs=5):
    """A batch, and the gradient of the loss by the outputs of each sample."""
    input = integer_values(shape, torch.float32, seed=100)
    return input, integer_values((shape[0], outputs), torch.float32, seed=101, largest=2)


def checked_batch(device):
    """The batch, after a look that both branches occur before each PReLU of the network."""
    input, factors = (tensor.to(device) for tensor in batch())
    for layer in (1, 3):
        assert_both_branches(network().to(device)[:layer](input))
    return input, factors


def loss(output, factors):
    return (output * factors).sum() / SAMPLES


def optimizer(model):
    return torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.5)


def train_alone(model, input, factors, steps=1):
    """What every distributed run is compared with. Leaves the gradients of the last step."""
    sgd = optimizer(model)
    for _ in range(steps):
        sgd.zero_grad()
        loss(model(input), factors).backward()
        sgd.step()
    return model
