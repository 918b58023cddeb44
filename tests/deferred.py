"""Models with a norm and PReLUs whose forward is given: for the tests of deferred results."""

from norm_pairs import changed, pair, randomized, sample
from torch import nn

X = sample(2, 8, 4, 4)


class Model(nn.Module):
    """A norm, a PReLU, and a forward that is given."""

    def __init__(self, forward):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.other = nn.PReLU(8)
        self.flag = True
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def both(forward, training=True):
    model = randomized(Model(forward)).train(training)
    return model, changed(model)


def result(training=True):
    """A changed norm's result, not used yet, and the norm's own."""
    plain, fused = pair().train(training), changed(pair().train(training))
    return fused[0](X), plain[0](X)
