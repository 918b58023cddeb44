"""Arguments that operators refuse, and in which words: data for the rows of the table."""

from dataclasses import dataclass

import torch

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
PROMOTING = "prelu: Type promoting not supported. Got {} and {}"
ZERO_DIM = "Not allow zero-dim input tensor."
MISMATCH = (
    "Mismatch of parameter numbers and input channel size. "
    "Found parameter numbers = {} and channel size = {}."
)
WEIGHT_NDIM = "prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {}"
UNSUPPORTED = "\"{operator}_{device}\" not implemented for '{dtype}'"
NORM_NDIM = "norm_prelu: Expected `input` to have at least 2 dimensions, but got: ndim = 1"
NORM_DTYPE = (
    "mixed dtype ({DEVICE}): expect parameter to have scalar type of Float or of `input`, Float, "
    "but `bias` has Double"
)
NORM_STATISTICS = (
    "norm_prelu: Expected `mean` to have the shape (C) or (N, C) of `input`, [2, 3, 4], but got [2]"
)
NORM_ALIKE = "norm_prelu: Expected `mean` and `var` to be alike"
LONG, BYTE, BOOL, INT = torch.long, torch.uint8, torch.bool, torch.int32
C64, F8 = torch.complex64, torch.float8_e4m3fn


@dataclass(frozen=True)
class Bad:
    """Shape and dtype of each argument, by name, and the text of the error."""

    arguments: dict
    text: str
    also_pytorchs: bool = True  # PyTorch's equivalent says the same

    def make(self, operator, device):
        return [torch.ones(s).to(device, d) for s, d in (self.arguments[n] for n in operator.names)]

    def words(self, operator, device):
        text = self.text.replace("{operator}", operator.name).replace("{device}", device)
        return text.replace("{DEVICE}", device.upper())

    @property
    def error(self):
        return NotImplementedError if "not implemented" in self.text else RuntimeError


def _unsupported(name):
    return UNSUPPORTED.replace("{dtype}", name)


# Input's shape and dtype, weight's shape and dtype, text. "before": two rules are broken.
_PRELU = {
    "float_with_half_weight": ((2, 3, 4), F32, (3,), F16, PROMOTING.format("Float", "Half")),
    "float_with_double_weight": ((2, 3, 4), F32, (3,), F64, PROMOTING.format("Float", "Double")),
    "double_with_float_weight": ((2, 3, 4), F64, (3,), F32, PROMOTING.format("Double", "Float")),
    "half_with_bfloat16_weight": ((2, 3, 4), F16, (3,), BF16, PROMOTING.format("Half", "BFloat16")),
    "bfloat16_with_half_weight": ((2, 3, 4), BF16, (3,), F16, PROMOTING.format("BFloat16", "Half")),
    "half_with_double_weight": ((2, 3, 4), F16, (3,), F64, PROMOTING.format("Half", "Double")),
    "long_with_float_weight": ((2, 3, 4), LONG, (3,), F32, PROMOTING.format("Long", "Float")),
    "half_with_long_weight": ((2, 3, 4), F16, (3,), LONG, PROMOTING.format("Half", "Long")),
    "dtype_with_0d_weight": ((2, 3, 4), F32, (), F64, PROMOTING.format("Float", "Double")),
    "dtype_before_zero_dim": ((), F32, (3,), F16, PROMOTING.format("Float", "Half")),
    "dtype_before_mismatch": ((2, 3), F32, (4,), F16, PROMOTING.format("Float", "Half")),
    "zero_dim": ((), F32, (3,), F32, ZERO_DIM),
    "zero_dim_with_empty_weight": ((), F32, (0,), F32, ZERO_DIM),
    "zero_dim_before_weight_ndim": ((), F32, (2, 2), F32, ZERO_DIM),
    "too_many_slopes": ((2, 3, 4), F32, (4,), F32, MISMATCH.format(4, 3)),
    "too_few_slopes": ((2, 3, 4), F32, (2,), F32, MISMATCH.format(2, 3)),
    "slopes_for_the_last_dimension": ((2, 3, 4, 5), F32, (5,), F32, MISMATCH.format(5, 3)),
    "no_slopes": ((2, 3, 4), F32, (0,), F32, MISMATCH.format(0, 3)),
    "slopes_for_no_channels": ((2, 0, 4), F32, (3,), F32, MISMATCH.format(3, 0)),
    "slopes_for_a_vector": ((5,), F32, (5,), F32, MISMATCH.format(5, 1)),
    "mismatch_of_empty_input": ((0, 3, 4), F32, (2,), F32, MISMATCH.format(2, 3)),
    "mismatch_before_weight_ndim": ((2, 3, 4), F32, (2, 2), F32, MISMATCH.format(4, 3)),
    "mismatch_before_unsupported_dtype": ((2, 3), LONG, (2,), LONG, MISMATCH.format(2, 3)),
    "weight_shaped_like_input": ((2, 3, 4), F32, (1, 3, 1), F32, WEIGHT_NDIM.format(3)),
    "weight_of_one_in_two_dimensions": ((2, 3, 4), F32, (1, 1), F32, WEIGHT_NDIM.format(2)),
    "weight_ndim_with_zero_dim_input": ((), F32, (1, 1), F32, WEIGHT_NDIM.format(2)),
    "weight_ndim_of_channels": ((2, 3, 4), F32, (3, 1), F32, WEIGHT_NDIM.format(2)),
    "weight_ndim_before_unsupported_dtype": ((2, 3), LONG, (3, 1), LONG, WEIGHT_NDIM.format(2)),
    "long": ((2, 3), LONG, (3,), LONG, _unsupported("Long")),
    "int": ((2, 3), INT, (), INT, _unsupported("Int")),
    "byte": ((2, 3), BYTE, (3,), BYTE, _unsupported("Byte")),
    "bool": ((2, 3), BOOL, (1,), BOOL, _unsupported("Bool")),
    "complex": ((2, 3), C64, (3,), C64, _unsupported("ComplexFloat")),
    "float8": ((2, 3), F8, (3,), F8, _unsupported("Float8_e4m3fn")),
    "empty_long": ((0, 3), LONG, (3,), LONG, _unsupported("Long")),
}

# The extension obeys the rules of shape, too; PyTorch refuses its dtypes.
_MIXED = {
    f"{name}_of_{dtype}_and_float32".replace("torch.", ""): (shape, dtype, slopes, F32, text)
    for dtype in (F16, BF16)
    for name, (shape, slopes, text) in {
        "zero_dim": ((), (3,), ZERO_DIM),
        "too_many_slopes": ((2, 3, 4), (4,), MISMATCH.format(4, 3)),
        "weight_ndim": ((2, 3, 4), (1, 1), WEIGHT_NDIM.format(2)),
    }.items()
}


def _bad(names, entries, also_pytorchs):
    return {
        name: Bad(
            dict.fromkeys(names, (shape, dtype)) | {"weight": (slopes, slope_dtype)},
            text,
            also_pytorchs,
        )
        for name, (shape, dtype, slopes, slope_dtype, text) in entries.items()
    }


PRELU = _bad(["input"], _PRELU, True) | _bad(["input"], _MIXED, False)
PRELU_BACKWARD = _bad(["grad_output", "input"], _PRELU | _MIXED, False)


def _norm(more, entries, also_pytorchs=False):
    """Entries: what differs from good arguments, by name; and the text."""
    good = dict.fromkeys(("slope", "weight", "bias", *more), ((3,), F32))
    good |= {"input": ((2, 3, 4), F32), "grad_output": ((2, 3, 4), F32)}
    return {k: Bad(good | changed, text, also_pytorchs) for k, (changed, text) in entries.items()}


_SLOPES = {
    "too_many_slopes": ({"slope": ((4,), F32)}, MISMATCH.format(4, 3)),
    "slope_ndim": ({"slope": ((3, 1), F32)}, WEIGHT_NDIM.format(2)),
    "slope_dtype": ({"slope": ((3,), F64)}, PROMOTING.format("Float", "Double")),
}
_SIZES = {
    "weight_size": ({"weight": ((4,), F32)}, "weight should contain 3 elements not 4"),
    "bias_size": ({"bias": ((2,), F32)}, "bias should contain 3 elements not 2"),
}
_VECTOR = dict.fromkeys(("input", "grad_output"), ((3,), F32))
_VECTOR |= dict.fromkeys(("mean", "var"), ((1,), F32))
_NORM = _SLOPES | _SIZES
_NORM |= {"vector": (_VECTOR, NORM_NDIM), "bias_dtype": ({"bias": ((3,), F64)}, NORM_DTYPE)}
_STATISTICS = {
    "mean_size": (dict.fromkeys(("mean", "var"), ((2,), F32)), NORM_STATISTICS),
    "statistics_of_two_shapes": ({"var": ((2, 3), F32)}, NORM_ALIKE),
}
NORM_PRELU = _norm((), _NORM)
NORM_PRELU_EVAL = _norm(("mean", "var"), _NORM | _STATISTICS)
PUBLIC_NORM_PRELU = _norm(("running_mean", "running_var"), _SLOPES, True)
