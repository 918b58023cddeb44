"""Which subclasses of nn.PReLU are swapped, and what they are then."""

import abc
import copy
import functools
import pickle

import pytest
import torch
from reference import assert_both_branches, assert_same_bits
from swaps import Activation, DerivedFromWrittenOut, Shifted, WrittenOut, calls, images
from torch import nn
from torch.nn.utils import parametrize

import torch_ext
from torch_ext import replace_prelu, restore_prelu

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("on_device")]


def test_a_subclass_that_inherits_forward_stays_an_instance_of_itself():
    model = nn.Sequential(Activation(3))
    assert replace_prelu(model).swapped == ["0"]
    assert isinstance(model[0], Activation)
    assert isinstance(model[0], torch_ext.PReLU)
    assert model[0].origin == "library"
    assert repr(model[0]) == repr(Activation(3))
    assert calls(model) == ["fused"]
    restore_prelu(model)
    assert type(model[0]) is Activation
    assert calls(model) == ["stock"]


def test_instances_of_one_subclass_share_one_swapped_class():
    model = nn.Sequential(Activation(3), Activation(3))
    replace_prelu(model)
    assert type(model[0]) is type(model[1])


def test_a_subclass_with_a_forward_of_its_own_is_left_alone():
    model = nn.Sequential(Shifted(3), nn.PReLU())
    expected = model(images())
    report = replace_prelu(model)
    assert report.swapped == ["1"]
    [(name, reason)] = report.skipped
    assert name == "0"
    assert reason.startswith(
        "Shifted.forward is not just prelu(input, self.weight): it computes sub"
    )
    assert type(model[0]) is Shifted
    assert_same_bits(model(images()), expected)


@pytest.mark.parametrize("cls", [WrittenOut, DerivedFromWrittenOut])
def test_a_class_named_in_also_is_swapped_with_those_that_inherit_its_forward(cls):
    model = nn.Sequential(cls(3), Shifted(3))
    assert [name for name, _ in replace_prelu(model).skipped] == ["0", "1"]
    expected = model[0](images())
    assert_both_branches(expected, expected)
    report = replace_prelu(model, also=[WrittenOut])
    assert report.swapped == ["0"]
    assert [name for name, _ in report.skipped] == ["1"]
    assert isinstance(model[0], cls)
    assert calls(model[0]) == ["fused"]
    assert_same_bits(model[0](images()), expected)
    restore_prelu(model)
    assert type(model[0]) is cls


def test_also_does_not_cover_a_forward_that_a_subclass_overrides_again():
    class Again(WrittenOut):
        def forward(self, input):
            return -super().forward(input)

    model = nn.Sequential(Again(3))
    assert [name for name, _ in replace_prelu(model, also=[WrittenOut]).skipped] == ["0"]


def test_a_forward_replaced_on_the_instance_is_left_alone():
    model = nn.Sequential(nn.PReLU())
    model[0].forward = torch.relu
    [(name, reason)] = replace_prelu(model, also=[nn.PReLU]).skipped
    assert name == "0"
    assert "instance" in reason
    assert type(model[0]) is nn.PReLU


def test_a_forward_wrapped_while_swapped_is_reported_when_restoring():
    """The old method, which goes on running the operator, is in the wrapper."""
    model = nn.Sequential(nn.PReLU(), nn.PReLU())
    replace_prelu(model)
    model[0].forward = functools.partial(model[0].forward)
    report = restore_prelu(model)
    assert report.swapped == ["1"]
    assert report.skipped == [("0", "its forward was replaced on the instance")]
    del model[0].forward
    assert restore_prelu(model).swapped == ["0"]


def test_a_forward_bound_on_the_instance_that_is_the_classs_own_is_no_other():
    """accelerate leaves one behind when its hooks are removed."""
    model = nn.Sequential(nn.PReLU(3), Activation(3))
    for module in model:
        module.forward = module.forward
    assert "forward" in vars(model[0])
    assert replace_prelu(model).swapped == ["0", "1"]
    assert calls(model) == ["fused", "fused"]
    for module in model:
        module.forward = module.forward
    assert restore_prelu(model).swapped == ["0", "1"]
    assert calls(model) == ["stock", "stock"]
    other = nn.Sequential(nn.PReLU(3), nn.PReLU(3))
    other[0].forward = other[1].forward  # another module's
    assert [name for name, _ in replace_prelu(other).skipped] == ["0"]


# ---- What a subclass notices -------------------------------------------------------------------

REGISTER = {}


class Registered(nn.PReLU):
    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        REGISTER[cls.__name__] = cls


class ByBase(Registered):
    pass


class Registering(type):
    def __init__(cls, name, bases, namespace):
        super().__init__(name, bases, namespace)
        REGISTER[name] = cls


class ByMetaclass(nn.PReLU, metaclass=Registering):
    pass


class Abstract(nn.PReLU, abc.ABC):
    pass


class Final(nn.PReLU):
    def __init_subclass__(cls):
        raise TypeError("no subclasses, please")


@pytest.mark.parametrize("cls", (ByBase, ByMetaclass, Abstract, Final))
@pytest.mark.parametrize("parametrized", (False, True), ids=("plain", "parametrized"))
def test_classes_that_register_themselves_do_not_notice_a_swap(cls, parametrized):
    model = nn.Sequential(cls(3))
    if parametrized and cls is not Final:  # which parametrize could not subclass either
        parametrize.register_parametrization(model[0], "weight", nn.Identity())
    before, kind = dict(REGISTER), type(model[0])
    assert before["ByBase"] is ByBase and before["ByMetaclass"] is ByMetaclass
    assert replace_prelu(model).swapped == ["0"]
    assert isinstance(model[0], cls) and isinstance(model[0], torch_ext.PReLU)
    assert calls(model) == ["fused"]
    assert restore_prelu(model).swapped == ["0"]
    assert type(model[0]) is kind
    assert before == REGISTER


@pytest.mark.parametrize("cls", (nn.PReLU, Activation, ByMetaclass, Abstract))
def test_the_class_of_a_swapped_module_can_be_pickled(cls):
    model = nn.Sequential(cls(3))
    replace_prelu(model)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(type(model[0]), protocol)) is type(model[0])
    assert copy.deepcopy(type(model[0])) is type(model[0])


def test_a_subclass_with_slots_and_a_stubborn_setattr_is_swapped():
    class Stubborn(nn.PReLU):
        __slots__ = ("tag",)

        def __setattr__(self, name, value):
            assert name != "__class__"
            super().__setattr__(name, value)

    model = nn.Sequential(Stubborn())
    model[0].tag = "kept"
    assert replace_prelu(model).swapped == ["0"]
    assert model[0].tag == "kept"
    assert restore_prelu(model).swapped == ["0"]
    assert type(model[0]) is Stubborn
