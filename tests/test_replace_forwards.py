"""Which forwards of their own subclasses may have and be swapped: just prelu(input, self.weight)."""

import random

import pytest
import torch
from reference import assert_both_branches, assert_same_bits
from swaps import Verbatim, calls, images, reason_of, subclass
from torch import nn
from torch.nn import functional as F

from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


# ---- Just PReLU --------------------------------------------------------------------------------


class WithInplace(nn.PReLU):
    """As timm has it: a constructor with an `inplace` that does nothing."""

    def __init__(self, num_parameters=1, init=0.25, inplace=False):
        super().__init__(num_parameters=num_parameters, init=init)
        self.inplace = inplace

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.prelu(input, self.weight)


class BySuper(nn.PReLU):
    def forward(self, x):
        """With another name for the input."""
        return super().forward(x)


def with_keywords(self, input):
    return F.prelu(weight=self.weight, input=input)


def with_a_check(self, x):
    weight = self.weight
    if weight is None or not hasattr(self, "training"):
        raise ValueError
    return torch.prelu(x, weight=self.weight)


def by_method(self, x):
    return x.prelu(self.weight)


def by_operator(self, x):
    return torch.ops.aten.prelu.default(x, self.weight)


def in_both_modes(self, x):
    return F.prelu(x, self.weight) if self.training else x.prelu(self.weight)


PLAIN = [WithInplace, BySuper, Verbatim] + [
    subclass(forward)
    for forward in (with_keywords, with_a_check, by_method, by_operator, in_both_modes)
]
PLAIN_NAMES = ["timm", "super", "functional", "keywords", "check", "method", "operator", "modes"]


@pytest.mark.parametrize("cls", PLAIN, ids=PLAIN_NAMES)
def test_a_forward_that_is_just_prelu_is_swapped(cls):
    model = nn.Sequential(cls(), nn.Sequential(cls()))
    with torch.no_grad():
        model[0].weight.fill_(-0.5)
    expected = model(images())
    assert_both_branches(images(), expected)
    report = replace_prelu(model)
    assert (report.swapped, report.skipped) == (["0", "1.0"], [])
    assert isinstance(model[0], cls)
    assert calls(model) == ["fused"] * 2
    assert_same_bits(model(images()), expected)
    restore_prelu(model)
    assert type(model[0]) is cls
    assert_same_bits(model(images()), expected)


def by_another_name(self, activations):
    return F.prelu(activations, self.weight)


@pytest.mark.parametrize(
    "name, cls", [("activations", subclass(by_another_name)), ("x", BySuper), ("input", Verbatim)]
)
def test_the_input_can_be_given_by_the_name_it_had(name, cls):
    module = cls()
    expected = module(**{name: images()})
    assert replace_prelu(module).swapped == [""]
    assert calls(module) == ["fused"]
    assert_same_bits(module(**{name: images()}), expected)
    assert_same_bits(module(images()), expected)
    script = torch.jit.script(module)
    assert "torch_ext::prelu" in str(script.graph)
    assert_same_bits(script(images()), expected)
    with pytest.raises(TypeError, match="other"):
        module(other=images())


def test_a_frozen_16_bit_module_in_evaluation_mode_is_judged_alike():
    model = nn.Sequential(WithInplace(3)).half().eval().requires_grad_(False)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        assert replace_prelu(model).swapped == ["0"]
    assert not model[0].training


# ---- Anything else -----------------------------------------------------------------------------


def shifted(self, x):
    return F.prelu(x - 1, self.weight)


def clamped(self, x):
    return F.prelu(x, self.weight.clamp(0, 1))


def sliced(self, x):
    """As in slimmable networks."""
    return F.prelu(x, self.weight[: x.shape[1]])


def detached(self, x):
    return F.prelu(x, self.weight.detach())


def by_data(self, x):
    return F.prelu(x, self.weight.data)


def identity(self, x):
    return x


def swapped_arguments(self, x):
    return F.prelu(self.weight, x)


def twice(self, x):
    return F.prelu(F.prelu(x, self.weight), self.weight)


def unused(self, x):
    x.sum()
    return F.prelu(x, self.weight)


def two_results(self, x):
    return F.prelu(x, self.weight), x


def two_arguments(self, x, scale=1.0):
    return F.prelu(x, self.weight)


def any_arguments(self, *args):
    return F.prelu(*args, self.weight)


def optional(self, x=None):
    return F.prelu(x, self.weight)


def in_training_only(self, x):
    return F.prelu(x, self.weight) if self.training else F.relu(x)


def in_evaluation_only(self, x):
    return F.relu(x) if self.training else F.prelu(x, self.weight)


def by_shape(self, x):
    return F.prelu(x, self.weight) if x.dim() == 4 else x


@torch.no_grad()
def without_gradients(self, x):
    return F.prelu(x, self.weight)


def in_inference_mode(self, x):
    with torch.inference_mode():
        return F.prelu(x, self.weight)


def without_autocast(self, x):
    with torch.autocast("cpu", enabled=False):
        return F.prelu(x, self.weight)


def by_chance(self, x):
    return x if torch.rand(()) < 0 else F.prelu(x, self.weight)


def by_python_chance(self, x):
    return x if random.random() < 0 else F.prelu(x, self.weight)


def with_a_way_out(self, x):
    try:
        return torch.where(x > 0, x, 0 * x)
    except RuntimeError:
        return F.prelu(x, self.weight)


@pytest.mark.parametrize(
    "forward, finding",
    [
        (shifted, "computes sub, prelu in training mode"),
        (clamped, "computes clamp, prelu"),
        (sliced, "computes getattr_1, getitem, getitem_1, prelu"),
        (detached, "computes detach, prelu"),
        (by_data, "computes getattr_1, prelu"),
        (identity, "computes something else"),
        (swapped_arguments, "computes prelu"),
        (twice, "computes prelu, prelu_1"),
        (unused, "computes sum_1, prelu"),
        (two_results, "computes prelu"),
        (two_arguments, "computes prelu"),
        (any_arguments, "cannot be traced by torch.fx"),
        (optional, "computes prelu"),
        (in_training_only, "calls relu in evaluation mode"),
        (in_evaluation_only, "calls relu in training mode"),
        (by_shape, "cannot be traced by torch.fx (TraceError: symbolically traced variables"),
        (without_gradients, "calls _set_grad_enabled"),
        (in_inference_mode, "changes autocast or inference mode"),
        (without_autocast, "changes autocast or inference mode"),
        (by_chance, "calls rand"),
        (by_python_chance, "draws random numbers"),
        (with_a_way_out, "calls where"),
    ],
)
def test_a_forward_that_does_anything_else_is_skipped_with_what_it_does(forward, finding):
    assert reason_of(subclass(forward)).startswith(finding)


def test_an_input_that_is_given_by_keyword_only_is_skipped_and_an_option_is_not():
    class ByKeyword(nn.PReLU):
        def forward(self, *, x):
            return F.prelu(x, self.weight)

    class WithOption(nn.PReLU):
        def forward(self, x, *, option=None):
            return F.prelu(x, self.weight)

    report = replace_prelu(nn.Sequential(ByKeyword(), WithOption()), also=(ByKeyword, WithOption))
    assert report.swapped == ["1"]
    assert report.skipped == [("0", "ByKeyword.forward takes its input by keyword only")]


def test_also_overrides_what_tracing_found():
    cls = subclass(unused)
    model = nn.Sequential(cls())
    assert replace_prelu(model, also=[cls]).swapped == ["0"]


def test_a_shared_class_is_judged_module_by_module():
    def forward(self, x):
        return F.prelu(x, self.weight) if self.enabled else x

    cls = subclass(forward, enabled=lambda: True)
    model = nn.Sequential(cls(), cls())
    model[1].enabled = False
    report = replace_prelu(model)
    assert report.swapped == ["0"]
    assert [name for name, _ in report.skipped] == ["1"]
