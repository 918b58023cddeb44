"""What the tests run on, as plain data: shapes, layouts, dtypes, values of both branches."""

import math
import zlib
from dataclasses import dataclass

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MIXED = ((torch.float16, torch.float32), (torch.bfloat16, torch.float32))
DTYPE_PAIRS = tuple((dtype, dtype) for dtype in DTYPES) + MIXED

# Ordinary ones, and every slope that a formula other than the select gets wrong.
SLOPES = (-1.0, -0.5, 0.0, -0.0, 0.25, 0.3, 1.0, 2.0, math.inf, -math.inf, math.nan)


# ---- Layouts: the same values, another place in memory -----------------------------------------


def contiguous(values):
    return values.contiguous()


def channels_last(values):
    """Channels are neighbours: channels-last images, or (B, T, C) tokens seen as (B, C, T)."""
    return values.movedim(1, -1).contiguous().movedim(-1, 1) if values.dim() > 1 else values


def transposed(values):
    """First and last dimension exchanged in memory."""
    return values.transpose(0, -1).contiguous().transpose(0, -1) if values.dim() > 1 else values


def rotated(values):
    """Dense, the batch is the innermost dimension: neither contiguous nor channels-last."""
    return values.movedim(0, -1).contiguous().movedim(-1, 0) if values.dim() > 1 else values


def step_2(values):
    """Every other element of a buffer."""
    if values.dim() == 0:
        return values
    buffer = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), math.nan)
    buffer[..., ::2] = values
    return buffer[..., ::2]


def narrowed(values):
    """The middle of a larger buffer, in the first and in the last dimension."""
    if values.dim() == 0:
        return values
    shape = list(values.shape)
    shape[-1] += 3
    shape[0] += 2 if values.dim() > 1 else 0
    buffer = values.new_full(shape, math.nan)
    view = buffer.narrow(-1, 1, values.shape[-1])
    view = view.narrow(0, 1, values.shape[0]) if values.dim() > 1 else view
    return view.copy_(values)


def offset(values, start=3):
    """Contiguous, `start` elements into its storage."""
    return (
        values.new_full((values.numel() + start,), math.nan)[start:]
        .view(values.shape)
        .copy_(values)
    )


def expanded(values):
    """One value for a whole line of the last dimension: stride 0."""
    return values[..., :1].expand_as(values) if values.dim() > 0 else values


def expanded_batch(values):
    """One sample for the whole batch: stride 0 in the first dimension."""
    return values[:1].expand_as(values) if values.dim() > 1 else values


def single_value(values):
    """What out.sum().backward() hands over: one number, all strides 0."""
    return values.reshape(-1)[:1].reshape(()).expand_as(values) if values.numel() else values


def odd_size_1_strides(values):
    """Dimensions of size 1 may have any stride at all."""
    strides = [
        stride if size != 1 else 77
        for size, stride in zip(values.shape, values.contiguous().stride())
    ]
    return values.contiguous().as_strided(values.shape, strides)


def overlapping(values):
    """Windows that share elements: strides too small for the shape."""
    if values.dim() == 0:
        return values
    strides = [1 + dim for dim in reversed(range(values.dim()))]
    return values.reshape(-1).repeat(1 + values.dim()).as_strided(values.shape, strides)


# Every element has its own place, in any order.
LAYOUTS = {
    f.__name__: f
    for f in (
        contiguous,
        channels_last,
        transposed,
        rotated,
        step_2,
        narrowed,
        offset,
        odd_size_1_strides,
    )
}
SHARING_LAYOUTS = {f.__name__: f for f in (expanded, expanded_batch, overlapping)}
DENSE_LAYOUTS = {f.__name__: f for f in (contiguous, channels_last, transposed, rotated, offset)}


# ---- Cases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple
    slopes: tuple  # the shape of weight
    layout: object = contiguous

    @property
    def seed(self):
        return zlib.crc32(self.name.encode())


CASES = (
    Case("image", (4, 16, 9, 9), (16,)),
    Case("image_channels_last", (4, 16, 9, 9), (16,), channels_last),
    Case("volume", (2, 6, 3, 5, 7), (6,)),
    Case("volume_channels_last", (2, 6, 3, 5, 7), (6,), channels_last),
    Case("tokens", (3, 33, 20), (33,), channels_last),
    Case("rows", (37, 24), (24,)),
    Case("rows_transposed", (37, 24), (24,), transposed),
    Case("vector", (67,), (1,)),
    Case("scalar", (), ()),
    Case("scalar_with_1d_weight", (), (1,)),
    Case("one_element", (1,), (1,)),
    Case("shared_weight", (3, 5, 7, 11), (1,)),
    Case("shared_0d_weight", (3, 5, 7), ()),
    Case("shared_weight_sliced", (3, 5, 7, 11), (1,), step_2),
    Case("one_channel", (5, 1, 13), (1,)),
    Case("three_channels", (2, 3, 11, 5), (3,)),
    Case("three_channels_last", (2, 3, 11, 5), (3,), channels_last),
    Case("seven_channels_last", (2, 7, 6, 5), (7,), channels_last),
    Case("24_channels_last", (2, 24, 6, 5), (24,), channels_last),
    Case("tiny_planes_5x5", (3, 12, 5, 5), (12,)),
    Case("tiny_planes_7x7", (3, 12, 7, 7), (12,)),
    Case("channels_equal_width", (4, 9, 6, 9), (9,)),
    Case("all_sizes_equal", (6, 6, 6, 6), (6,), channels_last),
    Case("six_dimensions", (2, 3, 2, 3, 2, 4), (3,)),
    Case("rotated", (5, 8, 3, 4), (8,), rotated),
    Case("transposed", (5, 8, 3, 4), (8,), transposed),
    Case("sliced", (4, 8, 9, 5), (8,), step_2),
    Case("narrowed", (4, 8, 9, 5), (8,), narrowed),
    Case("storage_offset", (4, 8, 9, 5), (8,), offset),
    Case("expanded", (4, 8, 9, 5), (8,), expanded),
    Case("expanded_batch", (4, 8, 9, 5), (8,), expanded_batch),
    Case("overlapping", (4, 8, 9, 5), (8,), overlapping),
    Case("size_1_dimensions", (1, 8, 1, 12), (8,), odd_size_1_strides),
    Case("large_image", (4, 32, 40, 40), (32,)),
    Case("large_image_channels_last", (4, 32, 40, 40), (32,), channels_last),
    Case("large_shared", (3, 50021), (1,)),
    Case("large_rows", (2501, 70), (70,)),
    Case("many_channels", (3, 20011), (20011,)),
)

EMPTY_CASES = (
    Case("no_samples", (0, 4, 3), (4,)),
    Case("no_channels", (2, 0, 3), (0,)),
    Case("no_channels_shared_weight", (2, 0, 3), (1,)),
    Case("no_pixels", (2, 3, 0), (3,)),
    Case("no_pixels_channels_last", (2, 3, 0, 5), (3,), channels_last),
    Case("empty_vector", (0,), ()),
    Case("empty_matrix", (0, 0), (0,)),
)

# For finite differences.
SMALL_CASES = (
    Case("image", (2, 3, 2, 2), (3,)),
    Case("image_channels_last", (2, 3, 2, 2), (3,), channels_last),
    Case("volume_channels_last", (1, 2, 2, 2, 3), (2,), channels_last),
    Case("tokens", (2, 3, 4), (3,), channels_last),
    Case("rows", (5, 4), (4,)),
    Case("transposed", (4, 3, 2), (3,), transposed),
    Case("sliced", (2, 3, 4), (3,), step_2),
    Case("channels_equal_width", (2, 4, 4), (4,)),
    Case("shared_weight", (3, 2, 4), (1,)),
    Case("shared_0d_weight", (3, 2, 4), ()),
    Case("one_channel", (16, 1), (1,)),
    Case("vector", (18,), (1,)),
    Case("scalar", (), ()),
    Case("empty", (0, 3), (3,)),
)

# Of many tasks for several threads.
LARGE_CASES = (
    Case("planes", (8, 16, 64, 65), (16,)),
    Case("channels_last", (8, 19, 50, 50), (19,), channels_last),
    Case("one_slope", (700001,), ()),
    Case("one_slope_even_shares", (84 * 8335,), ()),  # of 2, 3, 4 or 7 threads
    Case("one_large_plane", (1, 2, 300007), (2,)),
    Case("wide_rows", (40, 15013), (15013,)),
    Case("columns", (9001, 70), (70,)),
    Case("tall_rows", (60001, 5), (5,)),
    Case("rotated", (33, 12, 40, 40), (12,), rotated),
)

CASE_BY_NAME = {case.name: case for case in CASES + EMPTY_CASES}


# ---- Values ------------------------------------------------------------------------------------

default_device = "cpu"  # of values whose caller names none; the fixture `on_device` changes it


def _signs(shape, generator):
    """As many positive as negative ones, shuffled; of many, which would take long, about as many."""
    count = math.prod(shape)
    if count > 100_000:
        return torch.randint(2, shape, generator=generator).double().mul_(2).sub_(1)
    signs = torch.ones(count, dtype=torch.float64)
    signs[: (count + 1) // 2] = -1
    return signs[torch.randperm(count, generator=generator)].reshape(shape)


def random_values(shape, dtype, device=None, seed=0, zeros=True):
    """Half negative, half positive, at least 0.05 from zero; or, one in sixteen, a zero."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randn(shape, generator=generator, dtype=torch.float64).abs() + 0.05
    if zeros and magnitude.numel() >= 16:
        magnitude *= torch.rand(shape, generator=generator) >= 1 / 16
    return (magnitude * _signs(shape, generator)).to(device or default_device, dtype)


def integer_values(shape, dtype, device=None, seed=0, largest=4):
    """Small integers other than zero: products and sums are exact in any order and dtype."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(1, largest + 1, shape, generator=generator).double()
    return (magnitude * _signs(shape, generator)).to(device or default_device, dtype)


def special_values(dtype, device=None):
    """Sixteen: both zeros, denormals, the smallest and largest normal numbers, Inf, NaN."""
    info = torch.finfo(dtype)
    positive = [0.0, info.tiny * info.eps, info.tiny, 0.3, 1.0, info.max, math.inf]
    values = [*positive, *(-value for value in positive), 3.0, math.nan]
    return torch.tensor(values, dtype=torch.float64).to(device or default_device, dtype)


def slope_tensors(shape, dtype, device=None, values=SLOPES):
    """Weights of this shape that together hold every value."""
    count = math.prod(shape)
    for start in range(0, len(values), max(count, 1)):
        chosen = [values[(start + i) % len(values)] for i in range(count)]
        slopes = torch.tensor(chosen, dtype=torch.float64).reshape(shape)
        yield slopes.to(device or default_device, dtype)


def case_weights(case, dtype, device=None):
    """Every slope; only a few for a large input that shares one."""
    few = math.prod(case.shape) > 10_000 * math.prod(case.slopes)
    return slope_tensors(case.slopes, dtype, device, (-0.5, 2.0, math.inf) if few else SLOPES)


def finite_slopes(shape, dtype, device=None):
    """One weight of this shape: negative, above one, zero and in between."""
    return next(slope_tensors(shape, dtype, device, (-0.5, 0.25, 2.0, -1.0, 0.3, 0.0)))


def dyadic_slopes(shape, dtype, device=None):
    """The same of powers of two: products with small integers are exact in every dtype."""
    return next(slope_tensors(shape, dtype, device, (-0.5, 2.0, 0.25, -1.0, -2.0, 0.0, 1.0)))


def case_inputs(case, dtype, device=None, values=random_values, **options):
    """The case's input; a tiny one, which cannot hold both signs, also with the other sign."""
    input = case.layout(values(case.shape, dtype, device, seed=case.seed, **options))
    return [input] if input.numel() >= 16 else [input, case.layout(-input)]


# ---- Running -----------------------------------------------------------------------------------


def forward_backward(operator, input, weight, grad_output):
    """Output, gradient of input and gradient of weight, through autograd."""
    input, weight = input.detach().requires_grad_(), weight.detach().requires_grad_()
    output = operator(input, weight)
    return (output.detach(), *torch.autograd.grad(output, (input, weight), grad_output))


def significant_strides(tensor):
    """The strides that say where elements are: those of dimensions with more than one element."""
    if tensor.numel() == 0:
        return ()
    return tuple(
        (dim, stride) for dim, stride in enumerate(tensor.stride()) if tensor.shape[dim] > 1
    )
