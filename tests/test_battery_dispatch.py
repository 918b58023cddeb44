"""What the dispatcher knows of each operator: schema, keys, tags, opcheck, fake and meta kernels."""

import itertools
import warnings

import torch
from batteries import (
    CASES,
    DTYPES,
    EMPTY_CASES,
    SETTINGS,
    battery,
    each,
    first_setting,
    is_native,
    naming,
)
from cases import Case, channels_last, expanded, rotated, significant_strides, single_value, step_2
from reference import assert_same_bits
from test_battery_autograd import leaves_of, present, wanted
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_ext


def packet(operator):
    namespace, _, name = operator.schema.partition("(")[0].partition("::")
    return getattr(getattr(torch.ops, namespace), name)


@battery()
def test_the_schema_is_frozen(operator):
    """Saved programs refer to it: a change breaks them."""
    assert packet(operator).overloads() == ["default"]
    assert str(packet(operator).default._schema) == operator.schema


@battery(lambda operator: operator.whole)
def test_arguments_have_names_and_places(operator, device):
    arguments = operator.make(Case("names", (2, 3, 4), (3,)), operator.dtypes[0], device)
    setting = first_setting(operator)
    by_name = operator(*arguments, **setting)
    given = dict(zip(operator.names, arguments)) | setting
    order = [argument.name for argument in packet(operator).default._schema.arguments]
    by_place = packet(operator)(*(given[name] for name in order if name in given))
    by_place = (by_place,) if isinstance(by_place, torch.Tensor) else by_place
    for one, other in zip(by_name, by_place, strict=True):
        assert_same_bits(one, other)


def _has_kernel(operator, *keys):
    name = operator.schema.partition("(")[0]
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)


@battery(is_native)
def test_every_key_has_a_kernel_of_its_own(operator):
    """A missing Autograd kernel would lose gradients without a word."""
    assert _has_kernel(operator, "CPU", "Meta", "FuncTorchBatchedDecomposition")
    assert _has_kernel(operator, "Autograd") or _has_kernel(operator, "AutogradCPU", "AutogradCUDA")
    assert not torch_ext.build_info()["cuda"] or _has_kernel(operator, "CUDA")


@battery()
def test_the_tags_promise_what_pt2_needs_and_nothing_random(operator):
    tags = packet(operator).default.tags
    assert torch.Tag.pt2_compliant_tag in tags
    layout_tags = {
        "flexible_layout",
        "needs_fixed_stride_order",
        "needs_exact_strides",
        "needs_contiguous_strides",
    }
    assert len({tag.name for tag in tags} & layout_tags) == 1, "the layout tag is chosen on purpose"
    assert not {torch.Tag.nondeterministic_seeded, torch.Tag.inplace_view} & set(tags)


# ---- torch.library.opcheck ---------------------------------------------------------------------

SAMPLES = (
    Case("scalar", (), ()),
    Case("vector", (20,), (1,)),
    Case("rows", (6, 5), (5,)),
    Case("tokens", (2, 5, 6), (5,), channels_last),
    Case("image", (2, 3, 4, 5), (3,)),
    Case("image_channels_last", (2, 3, 4, 5), (3,), channels_last),
    Case("volume_channels_last", (2, 3, 2, 4, 3), (3,), channels_last),
    Case("shared", (2, 3, 4, 5), ()),
    Case("sliced", (2, 3, 4, 5), (3,), step_2),
    Case("rotated", (3, 4, 5), (4,), rotated),
    Case("expanded", (2, 3, 4, 5), (3,), expanded),
)


def _samples(operator):
    return {case.name: case for case in SAMPLES if operator.takes(case)}


def is_whole(operator):
    return operator.whole


@battery(is_whole, case=_samples, requires_grad=each({"no_grad": False, "requires_grad": True}))
def test_opcheck_finds_nothing(operator, case, requires_grad, device):
    """Schema, autograd registration, fake kernel, and AOT dispatch with symbolic sizes; with every setting,
    and in half of the dtypes, on which none of it depends."""
    settings = list(operator.settings.values())
    dtypes = operator.dtypes[::2]
    tried = itertools.zip_longest(
        dtypes, settings[:1] * len(dtypes) if len(settings) == 1 else settings
    )
    tried = [(some or dtypes[0], setting or settings[0]) for some, setting in tried]
    for dtypes, setting in tried:
        arguments = operator.make(case, dtypes, device)
        if requires_grad and any(operator.wanted(setting)):
            arguments = leaves_of(operator, arguments)
        with warnings.catch_warnings(), naming(dtypes=dtypes, setting=setting):
            warnings.filterwarnings("ignore", category=FutureWarning)  # from inside torch
            function, given = packet(operator).default, dict(zip(operator.names, arguments))
            results = torch.library.opcheck(function, (), given | setting)
            assert set(results) >= {
                "test_schema",
                "test_autograd_registration",
                "test_faketensor",
                "test_aot_dispatch_dynamic",
            }
            assert set(results.values()) == {"SUCCESS"}


# ---- Fake and Meta kernels ---------------------------------------------------------------------


def _description(tensors):
    return [t if t is None else (t.shape, t.dtype, significant_strides(t)) for t in tensors]


def _meta(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@battery(product=False, dtypes=DTYPES, case=CASES)
def test_fake_and_meta_kernels_predict_shapes_dtypes_and_strides(operator, dtypes, case):
    """Compared here, because opcheck skips the strides of CPU tensors in some versions."""
    layouts = dict.fromkeys(operator.data, single_value) | {"input": case.layout}
    for arguments in operator.signs(operator.make(case, dtypes, layouts=layouts)):
        for setting in operator.settings.values():
            real = _description(operator(*arguments, **setting))
            with FakeTensorMode() as mode:
                fake = operator(*[mode.from_tensor(t) for t in arguments], **setting)
                assert all(tensor.device.type == "cpu" for tensor in present(fake))
            meta = operator(*map(_meta, arguments), **setting)
            assert all(tensor.is_meta for tensor in present(meta))
            assert _description(fake) == _description(meta) == real


@battery(case=EMPTY_CASES, setting=SETTINGS)
def test_the_meta_kernel_knows_empty_tensors(operator, case, setting):
    arguments = [_meta(tensor) for tensor in operator.make(case, operator.dtypes[0])]
    for result, tensor in zip(operator.results, operator(*arguments, **setting), strict=True):
        assert tensor is None or tensor.shape == operator.like(result, arguments, setting).shape


@battery()
def test_gradients_flow_on_meta_tensors(operator):
    arguments = operator.make(Case("meta", (2, 3, 4), (3,)), operator.dtypes[0])
    leaves = leaves_of(operator, map(_meta, arguments))
    results = operator.derivable(operator(*leaves, **first_setting(operator)))
    for leaf, gradient in zip(
        wanted(leaves), torch.autograd.grad(sum(r.sum() for r in results), wanted(leaves))
    ):
        assert gradient.is_meta and gradient.shape == leaf.shape


@battery()
def test_fake_cuda_tensors_need_no_gpu(operator):
    arguments = operator.make(Case("fake", (2, 3, 4), (3,)), operator.dtypes[0])
    with FakeTensorMode():
        fake = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in arguments]
        results = operator(*fake, **first_setting(operator))
    for result, tensor in zip(operator.results, results, strict=True):
        if tensor is not None:
            like = operator.like(result, arguments, first_setting(operator))
            assert (tensor.device.type, tensor.shape) == ("cuda", like.shape)
