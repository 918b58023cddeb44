"""Random problems for Hypothesis: any shape, any place in memory, any dtypes, as one line of text."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from cases import DTYPE_PAIRS
from hypothesis import strategies as st
from operator_rows import Role

SIZES = (*range(71), 127, 128, 129, 255, 256, 257, 1023, 1025)
MOST_ELEMENTS = 20_000
SLOPES_OF_FEW_BITS = (-1.0, -0.5, 0.0, 0.25, 1.0, 2.0)
SLOPES = (*SLOPES_OF_FEW_BITS, 0.3)


@dataclass(frozen=True)
class Placement:
    """Where the elements of a tensor lie."""

    order: tuple  # of the dimensions in memory, outermost first
    steps: tuple  # of each dimension: 2 leaves every other element of the buffer out
    offset: int  # elements between the start of the storage and the tensor
    expanded: tuple  # of each dimension: one element for the whole of it

    def place(self, values):
        """The same values in a new buffer; those of expanded dimensions are the first ones."""
        sizes = [1 if same else size for size, same in zip(values.shape, self.expanded)]
        sizes = [min(size, whole) for size, whole in zip(sizes, values.shape)]
        values_kept = values[tuple(slice(size) for size in sizes)]
        spaced = [sizes[dim] * self.steps[dim] for dim in self.order]
        buffer = values.new_full((self.offset + math.prod(spaced),), math.nan)
        view = buffer[self.offset :].view(spaced)
        view = view[tuple(slice(None, None, self.steps[dim]) for dim in self.order)]
        view = view.permute([self.order.index(dim) for dim in range(len(self.order))])
        return view.copy_(values_kept).expand(values.shape)


@dataclass(frozen=True)
class Problem:
    shape: tuple
    slopes: tuple  # the shape of weight
    dtype: torch.dtype
    weight_dtype: torch.dtype
    input: Placement
    grad_output: Placement
    needs: tuple  # gradients of input and weight
    seed: int

    def arguments(self, operator):
        """Of an operator's row; sums of products are exact: small integers, and slopes with few bits."""
        made = []
        placements = [self.grad_output, self.input]
        for index, argument in enumerate(operator.arguments):
            if argument.role is Role.CHANNEL:
                made.append(argument.dyadic(self.shape[1:2], self.weight_dtype))
            elif argument.role is Role.SLOPE:
                generator = np.random.default_rng(self.seed + 100 + index)
                slopes = SLOPES if operator.elementwise else SLOPES_OF_FEW_BITS
                made.append(_tensor(generator.choice(slopes, self.slopes), self.weight_dtype))
            elif argument.name == "input":
                made.append(self.input.place(self._data(self.seed)))
            else:
                made.append(placements[index % 2].place(self._data(self.seed + 1 + index)))
        return made

    def _data(self, seed):
        values = [-4.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0]
        return _tensor(np.random.default_rng(seed).choice(values, self.shape), self.dtype)

    def like(self, result, index):
        """A gradient of a result, somewhere else in memory."""
        values = np.random.default_rng(self.seed + 50 + index).choice(
            [-3.0, -1.0, 0.5, 2.0], result.shape
        )
        values = _tensor(values, result.dtype)
        return self.grad_output.place(values) if result.shape == self.shape else values


def _tensor(values, dtype):
    return torch.from_numpy(np.array(values)).to(dtype)


# ---- Strategies --------------------------------------------------------------------------------


RANKS = st.integers(0, 6)


@st.composite
def shapes(draw, ranks):
    """Of few enough elements; one in four has as many channels as its last dimension is long."""
    shape, left = [], MOST_ELEMENTS
    for _ in range(draw(ranks)):
        shape.append(draw(st.sampled_from([size for size in SIZES if size <= left])))
        left //= max(shape[-1], 1)
    if len(shape) > 2 and draw(st.integers(0, 3)) == 0 and left * shape[-1] >= shape[1]:
        shape[-1] = shape[1]
    return tuple(shape)


@st.composite
def placements(draw, rank):
    some = st.sampled_from((False,) * 7 + (True,))
    return Placement(
        order=tuple(draw(st.permutations(range(rank)))),
        steps=tuple(draw(st.sampled_from((1, 1, 1, 2))) for _ in range(rank)),
        offset=draw(st.integers(0, 15)),
        expanded=tuple(draw(some) for _ in range(rank)),
    )


@st.composite
def problems(draw, ranks=RANKS, per_channel=False):
    shape = draw(shapes(ranks))
    channels = shape[1:2] if len(shape) > 1 else (1,)
    dtype, weight_dtype = draw(st.sampled_from(DTYPE_PAIRS))
    return Problem(
        shape,
        channels if per_channel else draw(st.sampled_from(((), (1,), channels, channels))),
        dtype,
        weight_dtype,
        draw(placements(len(shape))),
        draw(placements(len(shape))),
        draw(st.tuples(st.booleans(), st.booleans())),
        draw(st.integers(0, 2**16)),
    )
