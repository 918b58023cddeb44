"""The table of operators: what each of them is, as data that every battery of tests runs over.

A *row* (`Operator`, operator_rows.py) says how an operator is called, on which arguments and settings
it is tried, what its results have to be, and what it promises besides. A *battery*
(tests/test_battery_<property>.py) proves one property of every row that promises it; it knows no
operator. So a new operator needs a row here, and tests of its own only for what no other operator has.
"""

import bad_arguments
import reference
import torch
import torch.nn.functional as F
from cases import (
    CASE_BY_NAME,
    EMPTY_CASES,
    LARGE_CASES,
    SMALL_CASES,
    case_weights,
    forward_backward,
)
from expected import Bits, Sum
from norm_reference import NormOracle, plain_norm, plain_norm_backward
from operator_rows import Argument, Operator, Result, Role, values_in_turn

import torch_ext  # noqa: F401  (registers the operators)

# ---- PReLU ---------------------------------------------------------------------------------------


def _backward_oracle(grad_output, input, weight, output_mask):
    return (
        Bits(reference.grad_input(grad_output, input, weight)) if output_mask[0] else None,
        Sum(grad_output, input, weight) if output_mask[1] else None,
    )


def _pytorchs_backward(grad_output, input, weight, output_mask):
    gradients = forward_backward(F.prelu, input, weight, grad_output)[1:]
    return tuple(g if wanted else None for g, wanted in zip(gradients, output_mask))


INPUT = Argument("input", Role.DATA)
WEIGHT = Argument("weight", Role.SLOPE, every=case_weights)

PRELU = Operator(
    name="prelu",
    call=torch.ops.torch_ext.prelu,
    schema="torch_ext::prelu(Tensor input, Tensor weight) -> Tensor",
    arguments=(INPUT, WEIGHT),
    results=(Result("output", Role.DATA),),
    oracle=lambda input, weight: (Bits(reference.forward(input, weight)),),
    plain=lambda input, weight: (reference.plain(input, weight),),
    pytorch=lambda input, weight: (F.prelu(input, weight),),
    same_as_pytorch=("output",),
    backward=lambda *tensors: torch.ops.torch_ext.prelu_backward(*tensors, [True, True]),
    saved=("input", "weight"),
    bad=bad_arguments.PRELU,
)

PRELU_BACKWARD = Operator(
    name="prelu_backward",
    call=torch.ops.torch_ext.prelu_backward,
    schema="torch_ext::prelu_backward(Tensor grad_output, Tensor input, Tensor weight, "
    "bool[2] output_mask) -> (Tensor grad_input, Tensor grad_weight)",
    arguments=(Argument("grad_output", Role.DATA), INPUT, WEIGHT),
    results=(Result("grad_input", Role.DATA), Result("grad_weight", Role.SLOPE, "weight")),
    settings={
        "both": {"output_mask": [True, True]},
        "grad_input": {"output_mask": [True, False]},
        "grad_weight": {"output_mask": [False, True]},
        "neither": {"output_mask": [False, False]},
    },
    masks=("output_mask",),
    mask=lambda setting: setting["output_mask"],
    oracle=_backward_oracle,
    plain=reference.plain_backward,
    pytorch=_pytorchs_backward,
    same_as_pytorch=("grad_input",),
    bad=bad_arguments.PRELU_BACKWARD,
)


# ---- Norm + PReLU ------------------------------------------------------------------------------

ops = torch.ops.torch_ext
F32, BF16 = torch.float32, torch.bfloat16

SLOPE = Argument("slope", Role.SLOPE)


def _per_channel(name, ordinary, dyadic, **more):
    values = {"ordinary": values_in_turn(*ordinary), "dyadic": values_in_turn(*dyadic)}
    return Argument(name, Role.CHANNEL, **values, **more)


NORM_ARGUMENTS = (
    INPUT,
    SLOPE,
    _per_channel("weight", (0.7, -1.3, 1.9, 0.5, 1.1), (1.0, -0.5, 2.0, 0.5), optional=True),
    _per_channel("bias", (0.2, -0.3, 0.0, 0.1), (0.25, -0.5, 0.0, 1.0), optional=True),
)


def _given_statistics(mean, var, **more):
    """With eps = 0 and dyadic ones everything is exact."""
    more |= {"differentiable": False}
    return (
        _per_channel(mean, (0.2, -0.1, 0.0), (0.0, 0.5, -1.0), **more),
        _per_channel(var, (0.7, 1.9, 3.1), (1.0, 4.0, 0.25), signed=False, **more),
    )


def _elements(case):
    """Of a statistic of instance norm."""
    return torch.Size(case.shape[2:]).numel()


# What kernels share is proven once: a few tests of each battery are enough for a row.
NORM = {
    "most": 2,
    "elementwise": False,
    "graph_keeps_bits": False,
    "derivative_error": lambda dtype: {F32: 2.0**-18, torch.float64: 2.0**-47}.get(
        dtype, 4 * torch.finfo(dtype).eps
    ),
    "dtypes": ((F32, F32), (BF16, F32), (torch.float64,) * 2, (torch.float16,) * 2),
}
SAVED = {"saved": ("input", "slope", "weight", "bias"), "saved_statistics": 2}
SOME = ("image", "image_channels_last", "volume_channels_last", "tokens", "shared_weight_sliced")
SOME += ("shared_0d_weight", "three_channels", "rotated", "storage_offset", "large_image")


def _of_shapes(takes):
    """The cases that it takes: `most` of each battery."""
    return {
        "takes": takes,
        "cases": tuple(CASE_BY_NAME[name] for name in (*SOME, "rows") if takes(CASE_BY_NAME[name])),
        "empty_cases": tuple(filter(takes, EMPTY_CASES)),
        "small_cases": tuple(case for case in filter(takes, SMALL_CASES) if 0 not in case.shape),
        "large_cases": tuple(filter(takes, LARGE_CASES)),
    }


ROWS = _of_shapes(lambda case: len(case.shape) > 1)
BATCHES = _of_shapes(lambda case: len(case.shape) > 1 and case.shape[0] * _elements(case) != 1)
SAMPLES = _of_shapes(lambda case: len(case.shape) > 2 and _elements(case) != 1)


def _statistic(given):
    input = given["input"]
    dtype = torch.float64 if input.dtype == torch.float64 else F32
    shape = input.shape[:2] if given["instance"] else input.shape[1:2]
    return torch.empty(shape, dtype=dtype, device=input.device)


def _backward_with_its_statistics(input, slope, weight, bias, eps, instance, **given):
    _, mean, var = ops._norm_prelu(input, slope, weight, bias, eps, instance)
    return ops._norm_prelu_backward(
        given["grad_output"], input, slope, weight, bias, mean, var, eps, True, given["output_mask"]
    )


def _gradient_mask(setting):
    affine = setting.get("weight", "given") is not None
    return [wanted and (affine or i < 2) for i, wanted in enumerate(setting["output_mask"])]


def _masks(**common):
    masks = {"all": "1111", "grad_input": "1000", "grad_slope+grad_weight+grad_bias": "0111"}
    masks |= {"neither": "0000", "grad_slope": "0100"}
    return {k: common | {"output_mask": [bit == "1" for bit in v]} for k, v in masks.items()}


BATCH = {"eps": 1e-3, "instance": False}
NO_AFFINE = {"weight": None, "bias": None}
ALL = {"output_mask": [True] * 4}
GRADIENTS = (
    Result("grad_input", Role.DATA),
    Result("grad_slope", Role.SLOPE, "slope"),
    Result("grad_weight", Role.CHANNEL, "weight"),
    Result("grad_bias", Role.CHANNEL, "bias"),
)
BACKWARD_SCHEMA = (
    "torch_ext::_norm_prelu_backward(Tensor grad_output, Tensor input, Tensor slope, Tensor? weight, "
    "Tensor? bias, Tensor mean, Tensor var, float eps, bool training, bool[4] output_mask) -> "
    "(Tensor grad_input, Tensor grad_slope, Tensor grad_weight, Tensor grad_bias)"
)

NORM_PRELU = Operator(
    name="norm_prelu",
    call=ops._norm_prelu,
    schema="torch_ext::_norm_prelu(Tensor input, Tensor slope, Tensor? weight, Tensor? bias, "
    "float eps, bool instance) -> (Tensor output, Tensor mean, Tensor var)",
    arguments=NORM_ARGUMENTS,
    results=(
        Result("output", Role.DATA),
        Result("mean", Role.CHANNEL, _statistic, statistic=True),
        Result("var", Role.CHANNEL, _statistic, statistic=True),
    ),
    settings={
        "batch": BATCH,
        "instance": BATCH | {"instance": True},
        "no_affine": BATCH | NO_AFFINE,
    },
    oracle=lambda **given: NormOracle(**given).forward(),
    plain=plain_norm,
    backward=lambda grad_output, *tensors: _backward_with_its_statistics(
        *tensors, grad_output=grad_output, **BATCH, **ALL
    ),
    copies_nothing=lambda setting: not setting["instance"],
    **SAVED,
    bad=bad_arguments.NORM_PRELU,
    exact=False,
    **NORM | SAMPLES,
)

NORM_PRELU_EVAL = Operator(
    name="norm_prelu_eval",
    call=ops._norm_prelu_eval,
    schema="torch_ext::_norm_prelu_eval(Tensor input, Tensor slope, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor var, float eps) -> Tensor",
    arguments=(*NORM_ARGUMENTS, *_given_statistics("mean", "var")),
    results=(Result("output", Role.DATA),),
    settings={"affine": {"eps": 0.0}, "no_affine": {"eps": 0.0} | NO_AFFINE},
    oracle=lambda **given: NormOracle(**given).forward()[:1],
    plain=lambda **given: plain_norm(**given)[:1],
    backward=lambda grad_output, *tensors: ops._norm_prelu_backward(
        grad_output, *tensors, 0.0, False, [True] * 4
    ),
    **SAVED,
    bad=bad_arguments.NORM_PRELU_EVAL,
    **NORM | ROWS,
)

# Statistics of a training step are those of the input: what is differentiated is a function of it.
NORM_PRELU_BACKWARD = Operator(
    name="norm_prelu_backward",
    call=_backward_with_its_statistics,
    schema=BACKWARD_SCHEMA,
    arguments=(Argument("grad_output", Role.DATA), *NORM_ARGUMENTS),
    results=GRADIENTS,
    settings=_masks(**BATCH)
    | {"instance": BATCH | ALL | {"instance": True}, "no_affine": BATCH | ALL | NO_AFFINE},
    masks=("output_mask",),
    mask=_gradient_mask,
    oracle=lambda **given: NormOracle(**given).backward(_gradient_mask(given)),
    plain=lambda **given: plain_norm_backward(_gradient_mask(given), **given),
    whole=False,
    copies_nothing=lambda setting: False,
    exact=False,
    **NORM | SAMPLES | {"most": 1},
)

NORM_PRELU_BACKWARD_EVAL = Operator(
    name="norm_prelu_backward_eval",
    call=ops._norm_prelu_backward,
    schema=BACKWARD_SCHEMA,
    arguments=(
        Argument("grad_output", Role.DATA),
        *NORM_ARGUMENTS,
        *_given_statistics("mean", "var"),
    ),
    results=GRADIENTS,
    settings=_masks(eps=0.0, training=False)
    | {"no_affine": ALL | NO_AFFINE | {"eps": 0.0, "training": False}},
    masks=("output_mask",),
    mask=_gradient_mask,
    oracle=lambda **given: NormOracle(**given).backward(_gradient_mask(given)),
    plain=lambda **given: plain_norm_backward(_gradient_mask(given), **given),
    bad=bad_arguments.NORM_PRELU_EVAL,
    **NORM | ROWS,
)


def _public(norm, function, flag, shapes):
    """A public one, as a function: with copies of the buffers, which are results where they change."""

    def with_copies(function):
        def call(running_mean, running_var, **given):
            buffers = [None if b is None else b.clone() for b in (running_mean, running_var)]
            output = function(running_mean=buffers[0], running_var=buffers[1], **given)
            updated = given[flag] and running_mean is not None
            return output, *(buffers if updated else (None, None))

        return call

    def pytorchs(slope, **given):
        return F.prelu(getattr(F, f"{norm}_norm")(**given), slope)

    def internal(given):
        """What it is in the words of the internal operators."""
        given = dict(given)
        mean, var = given.pop("running_mean"), given.pop("running_var")
        momentum, instance = given.pop("momentum"), norm == "instance"
        if not given.pop(flag):
            return given | {"mean": mean, "var": var}, None
        return given | {"instance": instance}, None if mean is None else (mean, var, momentum)

    def oracle(**given):
        given, running = internal(given)
        oracle = NormOracle(**given)
        return oracle.forward()[0], *(oracle.running(*running) if running else (None, None))

    mean, var = _given_statistics("running_mean", "running_var", optional=True)
    usual = {"momentum": 0.3, "eps": 1e-3}
    default = "training=False" if norm == "batch" else "use_input_stats=True"
    none = "" if norm == "batch" else "=None"
    return Operator(
        name=f"{norm}_norm_prelu",
        call=with_copies(function),
        schema=f"torch_ext::{norm}_norm_prelu(Tensor input, Tensor slope, Tensor(a!)? "
        f"running_mean{none}, Tensor(b!)? running_var{none}, Tensor? weight=None, Tensor? bias=None, "
        f"bool {default}, float momentum=0.10000000000000001, float eps=1.0000000000000001e-05) "
        "-> Tensor",
        arguments=(*NORM_ARGUMENTS[:2], mean, var, *NORM_ARGUMENTS[2:]),
        results=(
            Result("output", Role.DATA),
            Result("running_mean", Role.CHANNEL, "running_mean", statistic=True),
            Result("running_var", Role.CHANNEL, "running_var", statistic=True),
        ),
        settings={
            "training": usual | {flag: True, "running_mean": None, "running_var": None},
            "running": usual | {flag: True},
            "eval": usual | {flag: False},
        },
        mask=lambda setting: [True, *[setting[flag] and "running_mean" not in setting] * 2],
        oracle=oracle,
        plain=lambda **given: (plain_norm(**internal(given)[0])[0], None, None),
        pytorch=with_copies(pytorchs),
        **SAVED,
        native=False,
        whole=False,
        copies_nothing=lambda setting: "running_mean" in setting and norm == "batch",
        exact=False,
        bad=bad_arguments.PUBLIC_NORM_PRELU,
        **NORM | shapes,
    )


BATCH_NORM_PRELU = _public("batch", ops.batch_norm_prelu, "training", BATCHES)
INSTANCE_NORM_PRELU = _public("instance", ops.instance_norm_prelu, "use_input_stats", SAMPLES)

OPERATORS = (
    PRELU,
    PRELU_BACKWARD,
    NORM_PRELU,
    NORM_PRELU_EVAL,
    NORM_PRELU_BACKWARD,
    NORM_PRELU_BACKWARD_EVAL,
    BATCH_NORM_PRELU,
    INSTANCE_NORM_PRELU,
)
