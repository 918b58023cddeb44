"""fuse_norm_prelu and restore_prelu: which modules are changed, which are named with a reason, and back."""

import copy
import io
import pickle

import pytest
import torch
from norm_pairs import (
    NORMS,
    assert_same,
    assert_trains_like,
    calls_of,
    changed,
    outcome,
    pair,
    randomized,
    sample,
)
from swaps import Doubled
from torch import nn
from torch.nn.utils import parametrize

from torch_ext import fuse_norm_prelu, replace_prelu, restore_prelu

pytestmark = pytest.mark.contract

X = sample(2, 8, 4, 4)


class Block(nn.Module):
    """A forward as people write them: attributes, a branch, a shortcut."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = None

    def forward(self, x):
        out = self.conv1(x)
        out = self.bn1(out)
        if self.pool is not None:
            out = self.pool(out)
        out = self.act(out)
        out = self.bn2(self.conv2(out))
        return out + x


def block():
    return randomized(Block())


# ---- What is changed -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("norm, shape", NORMS.values(), ids=NORMS.keys())
def test_a_fused_pair_computes_what_it_did(norm, shape, training):
    model = randomized(nn.Sequential(norm(8), nn.PReLU(8))).train(training)
    assert_trains_like(model, changed(model), sample(*shape))


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": None},
        {"track_running_stats": False},
        {"affine": False},
        {"momentum": 0.5, "eps": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_all_settings_of_a_norm(options, training):
    model = pair(**options).train(training)
    assert_trains_like(model, changed(model), X, steps=3)


def test_modules_parameters_names_and_state_stay():
    model = block()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state, text = copy.deepcopy(model.state_dict()), repr(model)
    report = fuse_norm_prelu(model, X)
    assert report.swapped == ["bn1", "act"]
    assert dict(model.named_modules()) == modules
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert repr(model) == text
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert isinstance(model.act, nn.PReLU)


def test_restore_gives_back_the_exact_classes():
    class Own(nn.PReLU):
        pass

    model = nn.Sequential(*pair(), *pair(), nn.BatchNorm2d(8), Own(8)).double()
    classes = [type(module) for module in model]
    fuse_norm_prelu(model)
    assert all(type(module) is not cls for module, cls in zip(model, classes, strict=True))
    assert isinstance(model[5], Own)
    report = restore_prelu(model)
    assert report.swapped == ["0", "1", "2", "3", "4", "5"]
    assert [type(module) for module in model] == classes


@pytest.mark.parametrize("first", ["replace", "fuse"])
def test_with_replace_prelu_in_any_order(first):
    model = block()
    both = [replace_prelu, fuse_norm_prelu]
    fused = copy.deepcopy(model)
    for change in both if first == "replace" else reversed(both):
        change(fused)
    assert_trains_like(model, fused, X)
    restore_prelu(fused)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]


def test_a_second_time_changes_and_reports_nothing():
    model = changed(pair())
    classes = [type(module) for module in model]
    assert fuse_norm_prelu(model).swapped == []
    assert [type(module) for module in model] == classes


def test_the_root_may_be_a_norm_or_nothing_may_be_found():
    assert fuse_norm_prelu(nn.BatchNorm2d(8)).skipped == [("", "no PReLU comes after it")]
    assert fuse_norm_prelu(nn.PReLU(8)).skipped == [("", "no norm comes before it")]
    assert str(fuse_norm_prelu(nn.Linear(2, 2))) == "0 swapped, 0 skipped"


@pytest.mark.parametrize(
    "arguments",
    [(1,), (pair(), None, 1), (pair(), [1.0])],
    ids=["model", "filter_fn", "example_inputs"],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(TypeError):
        fuse_norm_prelu(*arguments)


# ---- Reports -------------------------------------------------------------------------------------


def test_an_example_finds_the_pairs_and_names_the_others():
    model = nn.Sequential(block(), nn.PReLU(8), nn.BatchNorm2d(8)).double()
    state = copy.deepcopy(model.state_dict())
    report = fuse_norm_prelu(model.train(), X)
    assert report.swapped == ["0.bn1", "0.act"]
    assert dict(report.skipped) == {
        "0.bn2": "no PReLU got its result",
        "1": "what it got is not the result of a batch or instance norm",
        "2": "no PReLU got its result",
    }
    assert report.classes["0.bn1"] == "nn.BatchNorm2d -> nn.BatchNorm2d, fused with 0.act"
    assert model.training
    assert model[0].bn1.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_without_an_example_the_order_decides():
    report = fuse_norm_prelu(block())
    assert report.swapped == ["bn1", "act"]
    assert report.skipped == [("bn2", "no PReLU comes after it")]


def test_an_example_sees_through_identity_and_dropout_and_not_through_arithmetic():
    between = [nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5)]
    model = nn.Sequential(nn.BatchNorm2d(8), *between, nn.PReLU(8))
    assert fuse_norm_prelu(model, torch.randn(2, 8, 4, 4)).swapped == ["0", "4"]
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Hardtanh(), nn.PReLU(8))
    assert fuse_norm_prelu(model, torch.randn(2, 8, 4, 4)).swapped == []
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.PReLU(8))
    assert fuse_norm_prelu(model, torch.randn(2, 8, 4, 4)).swapped == []


def test_a_prelu_that_takes_more_than_an_input_is_named():
    class Masked(nn.PReLU):
        def forward(self, input, mask):
            return super().forward(input) * mask

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.prelu = nn.BatchNorm2d(8), Masked(8)

        def forward(self, x):
            return self.prelu(self.norm(x), x)

    report = fuse_norm_prelu(Model(), torch.randn(2, 8, 4, 4))
    assert [name for name, _ in report.skipped] == ["norm", "prelu"]


def test_an_example_that_fails_changes_nothing():
    model = pair()
    with pytest.raises(RuntimeError):
        fuse_norm_prelu(model, torch.randn(2, 7, 4, 4).double())
    assert [type(module) for module in model] == [nn.BatchNorm2d, nn.PReLU]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)


def test_filter_fn_leaves_modules_alone():
    asked = []

    def keep(module, name):
        asked.append(name)
        return name not in ("0", "3")

    model = nn.Sequential(*pair(), *pair())
    report = fuse_norm_prelu(model, X, keep)
    assert asked == ["0", "1", "2", "3"]
    assert report.swapped == []
    assert dict(report.skipped) == {
        "0": "refused by filter_fn",
        "1": "its norm was skipped: 0",
        "2": "its PReLU was skipped: 3",
        "3": "refused by filter_fn",
    }


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class OwnCheck(nn.BatchNorm2d):
    def _check_input_dim(self, input):
        pass


class Shifted(nn.PReLU):
    def forward(self, x):
        return super().forward(x + 1)


def parametrized():
    norm = nn.BatchNorm2d(8)
    parametrize.register_parametrization(norm, "weight", Doubled())
    return norm


def replaced():
    norm = nn.BatchNorm2d(8)
    norm.forward = torch.sin
    return norm


SKIPPED = {
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(8), "SyncBatchNorm takes its statistics over all"),
    "lazy": (nn.LazyBatchNorm2d, "a lazy module: run the model once first"),
    "own forward": (lambda: OwnForward(8), "OwnForward has a forward of its own"),
    "own check": (lambda: OwnCheck(8), "OwnCheck has a forward of its own"),
    "parametrized": (parametrized, "its Parameters are parametrized"),
    "on the instance": (replaced, "its forward was replaced on the instance"),
}


@pytest.mark.parametrize("make, reason", SKIPPED.values(), ids=SKIPPED.keys())
def test_norms_that_cannot_be_fused_are_named_with_the_reason(make, reason):
    model = nn.Sequential(make(), nn.PReLU(8))
    before = type(model[0])
    skipped = dict(fuse_norm_prelu(model).skipped)
    assert skipped["0"].startswith(reason)
    assert skipped["1"] == "its norm was skipped: 0"
    assert [type(module) for module in model] == [before, nn.PReLU]


def test_prelus_that_cannot_be_fused_are_named_with_the_reason():
    model = nn.Sequential(nn.BatchNorm2d(8), Shifted(8))
    skipped = dict(fuse_norm_prelu(model).skipped)
    assert skipped["0"] == "its PReLU was skipped: 1"
    assert skipped["1"].startswith("Shifted.forward is not just prelu(input, self.weight)")


def test_script_modules_are_named_and_stay():
    scripted = torch.jit.trace(pair().eval(), X)
    model = nn.Sequential(scripted, *pair()).eval()
    with pytest.warns(UserWarning, match="ScriptModules keep running"):
        report = fuse_norm_prelu(model)
    assert report.swapped == ["1", "2"]
    assert all("ScriptModule" in reason for _, reason in report.skipped)
    made, y = calls_of(lambda: model(X))
    assert made == 1
    torch.testing.assert_close(y, pair().eval()(pair().eval()(X)))


def test_a_subclass_that_inherits_its_call_is_fused_and_keeps_its_class():
    class Named(nn.BatchNorm2d):
        def __init__(self, channels, name):
            super().__init__(channels)
            self.name = name

    model = randomized(nn.Sequential(Named(8, "first"), nn.PReLU(8)))
    fused = changed(model)
    assert isinstance(fused[0], Named)
    assert fused[0].name == "first"
    assert_trains_like(model, fused, X)


# ---- Copies, pickles, files ----------------------------------------------------------------------


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
def test_copies_are_fused_and_independent(copied):
    model = block()
    fused = changed(model)
    twin = copied(fused)
    assert [type(module) for module in twin.modules()] == [type(m) for m in fused.modules()]
    assert_trains_like(model, twin, X)
    assert_same(outcome(fused, X), outcome(block(), X))  # what the copy trained is its own
    restore_prelu(twin)
    assert type(twin.bn1) is nn.BatchNorm2d
    assert type(fused.bn1) is not nn.BatchNorm2d


def test_weights_loaded_and_optimizers_made_around_the_change_are_used():
    model, source = block(), randomized(Block(), seed=1)
    fused = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (model, fused)]
    fuse_norm_prelu(fused)
    for each, optimizer in zip((model, fused), optimizers, strict=True):
        each.load_state_dict(source.state_dict())
        for _ in range(3):
            optimizer.zero_grad()
            each(X).square().sum().backward()
            optimizer.step()
    assert not torch.equal(fused.bn1.weight, source.bn1.weight)
    assert_same(dict(fused.state_dict()), dict(model.state_dict()))
