"""Whatever a model does with the result of a changed norm finds what the norm returns."""

import copy
import operator
import pickle

import numpy as np
import pytest
import torch
from deferred import X, both, result
from norm_pairs import assert_same, calls_of, changed, outcome, pair
from torch.nn import functional as F
from torch.utils import _pytree

import torch_ext

pytestmark = pytest.mark.contract

ONES = torch.ones(2, 8, 4, 4, dtype=torch.float64)


# ---- Ordinary uses -------------------------------------------------------------------------------


def add_in_place(m, x):
    z = m.norm(x)
    z.add_(1)
    return m.prelu(z)


def augmented(m, x):
    z = m.norm(x)
    z += 1
    z *= ONES
    return m.prelu(z)


def written_to(m, x):
    z = m.norm(x)
    z[:, 0] = 2.0
    return m.prelu(z)


def written_into_another(m, x):
    target = torch.zeros_like(ONES)
    target[:, :4] = m.norm(x)[:, :4]
    target.copy_(target + m.norm(x))
    return m.prelu(target)


def masked(m, x):
    z = m.norm(x)
    return m.prelu(torch.where(z > 0, z, ONES))


def branches_on_values(m, x):
    z = m.norm(x)
    return m.prelu(z) if z.mean() > 100 else m.other(z)


def dictionary(m, x):
    return m.prelu(_pytree.tree_map(lambda t: t * 2, {"z": [m.norm(x)]})["z"][0])


def through_a_function(m, x):
    return torch_ext.prelu(m.norm(x), m.prelu.weight)


def used_twice(m, x):
    z = m.norm(x)
    return m.prelu(z) + z


def two_prelus(m, x):
    z = m.norm(x)
    return m.prelu(z) * m.other(z)


UNFUSED = {
    "changed in place": add_in_place,
    "augmented assignments": augmented,
    "written to": written_to,
    "written into another": written_into_another,
    "viewed": lambda m, x: m.prelu(m.norm(x).view(2, 8, 16)),
    "sliced": lambda m, x: m.prelu(m.norm(x)[:, :, :2]),
    "transposed": lambda m, x: m.prelu(m.norm(x).mT),
    "concatenated": lambda m, x: m.prelu(torch.cat([m.norm(x), ONES])),
    "stacked out of a tuple": lambda m, x: m.prelu(torch.stack((m.norm(x), ONES)).sum(0)),
    "added to": lambda m, x: m.prelu(m.norm(x) + x),
    "added from the left": lambda m, x: m.prelu(ONES + m.norm(x)),
    "subtracted from a number": lambda m, x: m.prelu(1 - m.norm(x)),
    "power": lambda m, x: m.prelu(m.norm(x) ** 2),
    "matrix product": lambda m, x: m.prelu(m.norm(x) @ x),
    "compared": masked,
    "branched on": branches_on_values,
    "cast": lambda m, x: m.prelu(m.norm(x).to(torch.float64) * 1),
    "cloned": lambda m, x: m.prelu(m.norm(x).clone()),
    "detached": lambda m, x: m.prelu(m.norm(x).detach()),
    "in a dictionary": dictionary,
    "returned": lambda m, x: m.norm(x),
    "twice through the norm": lambda m, x: m.norm(m.norm(x)),
    "functional PReLU": lambda m, x: F.prelu(m.norm(x), m.prelu.weight),
    "our function": through_a_function,
    "our operator": lambda m, x: torch.ops.torch_ext.prelu(m.norm(x), m.prelu.weight),
    "as a keyword": lambda m, x: m.prelu(input=m.norm(x)),
    "another module": lambda m, x: F.gelu(m.norm(x)),
    "active dropout of everything": lambda m, x: m.prelu(F.dropout(m.norm(x), 1.0, True)) + x,
    "unpacked": lambda m, x: torch.stack([m.prelu(each[None]) for each in m.norm(x)]),
    "iterated": lambda m, x: m.prelu(torch.stack(list(m.norm(x)))),
    "einsum": lambda m, x: m.prelu(torch.einsum("nchw->nchw", m.norm(x)) * 1),
    "checked": lambda m, x: m.prelu(m.norm(x)) if operator.truth(m.norm(x).any()) else x,
}
FUSED = {
    "plain": lambda m, x: m.prelu(m.norm(x)),
    "with shape": lambda m, x: m.prelu(m.norm(x)).view(m.norm(x).shape[0], -1),
    "dropout of nothing": lambda m, x: m.prelu(F.dropout(m.norm(x), 0.0)),
    "dropout in eval": lambda m, x: m.prelu(F.dropout2d(m.norm(x), 0.5, False)),
    "attribute": lambda m, x: m.prelu(m.norm(x)) if m.flag else m.norm(x),
    "isinstance": lambda m, x: m.prelu(m.norm(x)) if isinstance(m.norm(x), torch.Tensor) else x,
    "training flag": lambda m, x: m.prelu(m.norm(x)) if m.training else m.other(m.norm(x)),
    "used twice": used_twice,
    "two PReLUs": two_prelus,
    "the shared norm": lambda m, x: m.prelu(m.norm(x)) * m.other(m.norm(x * 2)),
    "the shared PReLU": lambda m, x: m.prelu(m.prelu(m.norm(x)) + m.norm(x * 2)),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("forward", UNFUSED.values(), ids=UNFUSED.keys())
def test_any_other_use_gets_what_the_norm_returns(forward, training):
    model, fused = both(forward, training)
    expected = outcome(model, X)
    made, actual = calls_of(lambda: outcome(fused, X))
    assert made == (2 if forward is UNFUSED["checked"] else 0)
    assert_same(actual, expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("forward", FUSED.values(), ids=FUSED.keys())
def test_uses_that_leave_the_pair_together(forward, training):
    model, fused = both(forward, training)
    expected = outcome(model, X)
    made, actual = calls_of(lambda: outcome(fused, X))
    assert made == (4 if forward is FUSED["the shared norm"] else 2)
    assert_same(actual, expected)


LOOKS = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "numpy": lambda z: z.detach().numpy().tolist(),
    "asarray": lambda z: np.asarray(z.detach()).tolist(),
    "tolist": lambda z: z.tolist(),
    "len": len,
    "item": lambda z: z.sum().item(),
    "float": lambda z: float(z.sum()),
    "bool": lambda z: bool((z > 0).all()),
    "dtype": lambda z: (z.dtype, z.device, z.layout, z.requires_grad, z.is_leaf, z.is_contiguous()),
    "shape": lambda z: (z.shape, z.size(), z.size(1), z.size(dim=-1), z.dim(), z.ndim, z.numel()),
    "grad_fn": lambda z: type(z.grad_fn).__name__,
    "is_tensor": lambda z: (torch.is_tensor(z), isinstance(z, torch.Tensor)),
    "pickle": lambda z: pickle.loads(pickle.dumps(z.detach())).tolist(),
    "deepcopy": lambda z: copy.deepcopy(z.detach()).tolist(),
    "contains": lambda z: 0.5 in z,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_to_look_at_it_is_to_look_at_a_tensor(look):
    actual, expected = result()
    assert look(actual) == look(expected)
    assert type(actual + 0) is torch.Tensor


def test_a_result_is_one_tensor_whatever_is_asked_of_it():
    z, _ = result()
    assert z.grad_fn is z.grad_fn
    z.retain_grad()
    z.register_hook(lambda grad: grad * 2)
    (z.sum() + z[0].sum()).backward()
    assert z.grad is not None
    assert (z.grad != 0).all()


STARTS = {
    "method": lambda z: z.backward(torch.ones_like(z)),
    "autograd.backward": lambda z: torch.autograd.backward([z], [ONES]),
    "autograd.backward of a scalar": lambda z: torch.autograd.backward(z.sum()),
    "of two": lambda z: torch.autograd.backward([z, z * 2], [ONES, ONES]),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_backward_may_start_at_it(start):
    plain, fused = pair(), changed(pair())
    for model in (plain, fused):
        start(model[0](X))
    assert fused[0].bias.grad.abs().min() > 0
    torch.testing.assert_close(fused[0].bias.grad, plain[0].bias.grad)
    torch.testing.assert_close(fused[0].weight.grad, plain[0].weight.grad)


def test_gradients_may_be_asked_for_of_it():
    plain, fused = pair(), changed(pair())
    grads = [
        torch.autograd.grad(model[0](X), [*model[0].parameters()], ONES) for model in (plain, fused)
    ]
    torch.testing.assert_close(grads[1], grads[0])
    assert grads[0][1].abs().min() > 0


def test_an_attribute_set_on_it_stays():
    z, _ = result()
    z.origin = "norm"
    z.sum()
    assert z.origin == "norm"
