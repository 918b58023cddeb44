"""Operators that are broken on purpose, one way each, for the test of the batteries themselves."""

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from cases import CASE_BY_NAME, LARGE_CASES, SMALL_CASES
from operators import BATCH_NORM_PRELU, NORM_PRELU, PRELU, PRELU_BACKWARD
from torch.autograd import forward_ad

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

FEW = {
    "dtypes": ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)),
    "cases": tuple(CASE_BY_NAME[name] for name in ("image_channels_last", "scalar", "sliced")),
    "small_cases": SMALL_CASES[:2],
    "large_cases": LARGE_CASES[:1],
}

_COUNT = itertools.count()


# ---- Registered ones: what toys are, and ones whose registration is wrong -----------------------

LIBRARY = torch.library.Library("torch_ext_toys", "DEF")
PROMISES = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


def _define(name, backward=False, tags=PROMISES, **kernels):
    schema = (PRELU_BACKWARD if backward else PRELU).schema.partition("(")[2]
    LIBRARY.define(f"{name}({schema}", tags=tags)
    for key, kernel in kernels.items():
        LIBRARY.impl(name, kernel, key)
    row = PRELU_BACKWARD if backward else PRELU
    return replace(
        row,
        name=name,
        call=kernels.get("CompositeImplicitAutograd", getattr(torch.ops.torch_ext_toys, name)),
        schema=f"torch_ext_toys::{name}({schema}",
        native=False,
        **FEW,
    )


def _other_strides(input, weight):
    reversed_shape = torch.empty(input.shape[::-1], dtype=input.dtype, device=input.device)
    return reversed_shape.permute([*range(input.dim() - 1, -1, -1)])


TOY = _define("toy", CompositeImplicitAutograd=lambda input, weight: prelu(input, weight))
TOY_BACKWARD = _define(
    "toy_backward",
    backward=True,
    CompositeImplicitAutograd=lambda grad_output, input, weight, output_mask: prelu_backward(
        grad_output, input, weight, output_mask
    ),
)
UNTAGGED = _define("untagged", tags=(), CompositeImplicitAutograd=prelu)
OTHER_STRIDES = _define("other_strides", CPU=prelu, Meta=_other_strides)
NO_SHAPE = _define("no_shape", CPU=prelu, Meta=lambda x, w: x.new_empty((3, 1, 3)))


# ---- Wrong functions ---------------------------------------------------------------------------


def _toy(call, **changes):
    return replace(TOY, call=lambda input, weight: call(input, weight), **changes)


def _of_output(change):
    return _toy(lambda input, weight: change(prelu(input, weight), input, weight))


def _of_sum(change):
    """The slope's gradient made another, from its terms."""

    def call(grad_output, input, weight, output_mask):
        grad_input, grad_weight = prelu_backward(grad_output, input, weight, output_mask)
        if grad_weight is not None:
            terms = torch.where(input > 0, 0, input.double() * grad_output.double())
            grad_weight = change(grad_weight, terms, weight)
        return grad_input, grad_weight

    return replace(TOY_BACKWARD, call=call)


def _sum_of_parts(grad_weight, terms, weight):
    """Two halves, each rounded to 16 bits."""
    parts = terms.tensor_split(2)
    if weight.numel() != 1:
        parts = [part.movedim(1, 0).flatten(1).sum(1) for part in parts]
    return (
        sum(part.sum().half() if weight.numel() == 1 else part.half() for part in parts)
        .to(weight)
        .reshape(weight.shape)
    )


def _last_is_lost(grad_output, input, weight, output_mask):
    grad_output = grad_output.clone()
    grad_output.view(-1)[-1:] = 0
    input = torch.where(
        torch.arange(input.numel()).view(input.shape) < input.numel() - 1, input, -1
    )
    return prelu_backward(grad_output, input, weight, output_mask)


def _tail_is_lost(output, input, weight):
    output = output.clone()
    if output.shape and output.shape[-1] % 8 == 5:
        output[..., -1] = 7
    return output


def _never_mind_the_mask(grad_output, input, weight, output_mask):
    return prelu_backward(grad_output, input, weight, [True, True])


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(input, weight):
        return prelu(input, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        input, weight = ctx.saved_tensors
        grads = prelu_backward(grad_output.detach(), input.detach(), weight.detach(), [True, True])
        return tuple(grad + 0 * grad_output.sum() for grad in grads)


class _KeepsTensorsItself(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight):
        ctx.kept = input, weight
        return prelu(input, weight)

    @staticmethod
    def backward(ctx, grad_output):
        times = 1 + float(grad_output.sum() * 0) + next(_COUNT)
        return tuple(times * grad for grad in prelu_backward(grad_output, *ctx.kept, [True, True]))


def _touched(output, input, weight):
    with torch.no_grad():
        input.detach().add_(0)
    return output


def _with_grad(input, weight):
    with torch.inference_mode(False), torch.enable_grad():
        return prelu(input.detach().clone().requires_grad_(), weight)


def _hole(output, input, weight):
    whole = torch.empty_like(output).copy_(output.detach())
    if torch.are_deterministic_algorithms_enabled():
        whole.view(-1)[:1] = torch.empty(1).to(whole)
    return torch.where(whole == output, output, whole)


def _inside_a_transform():
    return torch._C._functorch.peek_interpreter_stack() is not None


NEGATIVE_SLOPES = _toy(lambda input, weight: prelu(input, weight.abs()))
AT_ZERO = _toy(lambda input, weight: F.prelu(input, weight.to(input.dtype)))  # derivatives by >=
POSITIVE_ZERO = _of_output(lambda y, x, w: torch.where(x == 0, 0, y))
MAXIMUM = _toy(
    lambda input, weight: torch.clamp(input, min=0) + prelu(torch.clamp(input, max=0), weight)
)
SPILLS = _of_output(lambda y, x, w: y + 0 * y.roll(1, -1))
TAIL = _of_output(_tail_is_lost)
CONTIGUOUS = _of_output(lambda y, x, w: y.clone(memory_format=torch.contiguous_format).contiguous())
MISALIGNED = _of_output(lambda y, x, w: y + (x.storage_offset() % 4 == 3))
WEIGHT_STRIDES = _toy(lambda x, w: prelu(x, w.as_strided(w.shape, (1,) * w.dim())))
IGNORES_NEGATION = _toy(lambda x, w: prelu(torch._neg_view(x) if x.is_neg() else x, w))
CLONES = _toy(lambda x, w: prelu(x.clone(), w))
DOUBLED = _of_output(lambda y, x, w: y + (y - y.detach()))
ALWAYS_NEEDS = _of_output(lambda y, x, w: y if y.requires_grad else y.detach().requires_grad_())
FIRST_ORDER = _toy(_FirstOrderOnly.apply)
KEEPS_TENSORS = _toy(_KeepsTensorsItself.apply)
NO_TANGENTS = _of_output(
    lambda y, x, w: y if torch.is_grad_enabled() else forward_ad.unpack_dual(y).primal
)
IN_TRANSFORMS = _of_output(lambda y, x, w: 2 * y if _inside_a_transform() else y)
SWAPPED = _toy(lambda input, weight: prelu(-input, weight))
WRONG_SCHEMA = replace(TOY, schema=TOY.schema.replace("weight", "slope"))
WITHOUT_KERNELS = replace(AT_ZERO, native=True)
TOUCHES = _of_output(_touched)
SAVES_MORE = _of_output(lambda y, x, w: torch.where(y.sigmoid() > 2, 0, y))
CHANGES = _of_output(lambda y, x, w: y + next(_COUNT))
SAVES_WITHOUT_GRAD = _toy(_with_grad)
SAVES_COPIES = _toy(lambda x, w: prelu(x.clone(), w.clone()))
HOLES = _of_output(_hole)
FLUSHES = _of_output(lambda y, x, w: (torch.set_flush_denormal(True), y)[1])


def _other_words(input, weight):
    try:
        return prelu(input, weight)
    except RuntimeError:
        raise RuntimeError("something is wrong") from None


def _changes_on_error(input, weight):
    try:
        return prelu(input, weight)
    except RuntimeError:
        input.add_(1)
        raise


OTHER_WORDS = _toy(_other_words)
CHANGES_ON_ERROR = _toy(_changes_on_error)
ANY_META = _toy(lambda x, w: torch.empty_like(x) if x.is_meta else prelu(x, w))
PROMOTES = _toy(lambda x, w: prelu(x, w.to(x.dtype)))
MAKES_UP = _toy(lambda x, w: prelu(x, torch.ones((), dtype=x.dtype) if w is None else w))
MOVES = _toy(lambda x, w: prelu(x, w.to(x.device)))
BROADCASTS = replace(
    TOY_BACKWARD,
    call=lambda grad_output, input, weight, output_mask: prelu_backward(
        torch.broadcast_to(grad_output, input.shape), input, weight, output_mask
    ),
)
ANY_MASK = replace(
    TOY_BACKWARD,
    call=lambda grad_output, input, weight, output_mask: prelu_backward(
        grad_output, input, weight, ([*output_mask, True, True])[:2]
    ),
)


def _outside_autocast(input, weight):
    with torch.autocast(input.device.type, enabled=False):
        return prelu(input, weight)


OUTSIDE_AUTOCAST = _toy(_outside_autocast)
WHILE_COMPILING = _of_output(lambda y, x, w: 2 * y if torch.compiler.is_compiling() else y)


class _TwiceAsMuchWhileCompiling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad if torch.compiler.is_compiling() else grad


COMPILED_GRADIENT = _of_output(lambda y, x, w: _TwiceAsMuchWhileCompiling.apply(y))

LOSES_A_TERM = replace(TOY_BACKWARD, call=_last_is_lost)
SUMS_IN_16_BITS = _of_sum(_sum_of_parts)
FINITE_SUMS = _of_sum(lambda grad_weight, terms, weight: grad_weight.nan_to_num())
NAN_FOR_NOTHING = _of_sum(lambda grad_weight, terms, weight: grad_weight + 0 * weight)
IGNORES_MASKS = replace(TOY_BACKWARD, call=_never_mind_the_mask)
COPIES_TWICE = replace(
    TOY_BACKWARD,
    call=lambda grad_output, input, weight, output_mask: prelu_backward(
        grad_output.contiguous() * input.clone().abs().sign().abs().add(1).sign(),
        input,
        weight,
        output_mask,
    ),
)


# ---- Norms -------------------------------------------------------------------------------------


def _statistics_are_constants(input, slope, weight, bias, eps, instance):
    """Right values; the derivatives of another function."""
    operators = torch.ops.torch_ext
    parameters = slope, weight, bias
    _, mean, var = operators._norm_prelu(input, *parameters, eps, instance)
    return operators._norm_prelu_eval(input, *parameters, mean, var, eps), mean, var


def _biased(**given):
    output, mean, var = BATCH_NORM_PRELU.call(**given)
    count = output.numel() / output.shape[1]
    return output, mean, None if var is None else var * (count - 1) / count


CONSTANT_STATISTICS = replace(NORM_PRELU, call=_statistics_are_constants)
BIASED_VARIANCE = replace(BATCH_NORM_PRELU, call=_biased)
