"""Stage: one small problem of each kind, without pytest; compute-sanitizer runs the same script.

Tensors are made on the CPU and copied over, and results are compared there: on the device run our
kernels and copies, so a sanitizer has little else to look at, and sees who wrote what.
"""

import argparse
import sys
import traceback

import reference
import torch
from cases import (
    DTYPE_PAIRS,
    channels_last,
    contiguous,
    finite_slopes,
    integer_values,
    offset,
    random_values,
    rotated,
    single_value,
    transposed,
)

import torch_ext  # noqa: F401  (registers the operators)
from gpu import events

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

# Each traversal, with one split and with many, whole packs and tails, sums of one block and of many.
PROBLEMS = (
    ("planes", (2, 3, 40, 40), (3,), contiguous),
    ("odd planes", (3, 5, 29, 31), (5,), contiguous),
    ("one long plane", (1, 2, 70001), (2,), contiguous),
    ("tiny planes", (9, 16, 7, 7), (16,), contiguous),
    ("many tiny planes", (700, 3, 5, 5), (3,), contiguous),
    ("channels last", (3, 64, 9, 9), (64,), channels_last),
    ("3 channels last", (4, 3, 61, 33), (3,), channels_last),
    ("wide rows", (5, 4099), (4099,), contiguous),
    ("tall rows", (5003, 7), (7,), contiguous),
    ("one slope", (3, 33333), (1,), contiguous),
    ("one slope, 0-d", (12345,), (), contiguous),
    ("one element", (1,), (1,), contiguous),
    ("transposed", (6, 10, 5, 8), (10,), transposed),
    ("rotated", (17, 8, 6, 4), (8,), rotated),
)


def on_device(values, device, start=0):
    """The same elements, strides and offset there; one copy from host to device, no kernel."""
    if start:
        base = offset(values.contiguous(), start)._base
        return base.to(device)[start:].view(values.shape)
    return values.to(device)


def check_exact(name, shape, slopes, layout, dtypes, device, starts=(0, 0)):
    """Forward and both gradients of small integers: every result has one right answer."""
    dtype, weight_dtype = dtypes
    input = layout(integer_values(shape, dtype, seed=1))
    grad_output = layout(integer_values(shape, dtype, seed=2, largest=3))
    weight = finite_slopes(slopes, weight_dtype)
    tensors = (
        on_device(input, device, starts[0]),
        on_device(weight, device),
        on_device(grad_output, device, starts[1]),
    )
    output = prelu(*tensors[:2]).cpu()
    grad_input, grad_weight = (
        grad.cpu() for grad in prelu_backward(tensors[2], *tensors[:2], [True, True])
    )
    only_input, _ = prelu_backward(tensors[2], *tensors[:2], [True, False])
    _, only_weight = prelu_backward(tensors[2], *tensors[:2], [False, True])
    exact = torch.from_numpy(reference.exact_grad_weight(grad_output, input, weight))
    reference.assert_both_branches(input, output, grad_input)
    reference.assert_same_bits(output, reference.forward(input, weight))
    reference.assert_same_bits(grad_input, reference.grad_input(grad_output, input, weight))
    reference.assert_same_bits(grad_weight, exact.to(weight_dtype))
    reference.assert_same_bits(only_input.cpu(), grad_input)
    reference.assert_same_bits(only_weight.cpu(), grad_weight)


def check_expanded(device, dtypes):
    """What `output.sum().backward()` hands over: one number with all strides 0."""
    input = integer_values((3, 5, 20, 21), dtypes[0], seed=3)
    weight = finite_slopes((5,), dtypes[1])
    grad_output = single_value(integer_values((3, 5, 20, 21), dtypes[0], seed=4))
    expanded = grad_output[:1, :1, :1, :1].contiguous().to(device).expand(input.shape)
    grad_input, grad_weight = prelu_backward(
        expanded, input.to(device), weight.to(device), [True, True]
    )
    exact = torch.from_numpy(reference.exact_grad_weight(grad_output, input, weight))
    reference.assert_same_bits(grad_input.cpu(), reference.grad_input(grad_output, input, weight))
    reference.assert_same_bits(grad_weight.cpu(), exact.to(dtypes[1]))


def check_random(device, dtypes):
    """Ordinary values: the sum within its bound, through autograd."""
    input = random_values((5, 12, 33, 35), dtypes[0], seed=5)
    grad_output = random_values(input.shape, dtypes[0], seed=6)
    weight = finite_slopes((12,), dtypes[1])
    leaves = [tensor.to(device).requires_grad_() for tensor in (input, weight)]
    grads = torch.autograd.grad(prelu(*leaves), leaves, grad_output.to(device))
    reference.assert_grad_weight_within_bound(grads[1].cpu(), grad_output, input, weight)


def checks(device):
    for dtypes in DTYPE_PAIRS:
        label = "/".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        for problem in PROBLEMS:
            yield f"{problem[0]} {label}", lambda p=problem, d=dtypes: check_exact(*p, d, device)
        for starts in ((1, 1), (0, 1), (3, 2)):
            name = f"misaligned by {starts} {label}"
            planes = (name, (2, 3, 30, 30), (3,), contiguous)
            rows = (name, (400, 24), (24,), contiguous)
            yield name, lambda p=planes, d=dtypes, s=starts: check_exact(*p, d, device, s)
            yield f"rows {name}", lambda p=rows, d=dtypes, s=starts: check_exact(*p, d, device, s)
        yield f"expanded gradient {label}", lambda d=dtypes: check_expanded(device, d)
        yield f"random values {label}", lambda d=dtypes: check_random(device, d)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quiet", action="store_true", help="tell no outcomes; exit status alone")
    options = parser.parse_args()
    failures = 0
    for name, check in checks(options.device):
        result, reason = events.PASSED, ""
        try:
            check()
        except Exception as error:  # noqa: BLE001  (the next problem may still tell something)
            traceback.print_exc()
            result, reason = events.FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
            failures += 1
        if not options.quiet:
            events.outcome(name, result, reason)
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
