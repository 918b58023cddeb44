// See prelu_composite.h. Registers the rules for vmap.
#include "ops/prelu_composite.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

// 1 or the slope, per element. `x * local_slope` is the definition of PReLU in a form whose
// derivatives by PyTorch's own rules keep the contract: x * 1 and g * 1 are exact to the sign of
// zero, and the weight's share of g * x passes through a select, never through a multiplication by
// 0.
at::Tensor local_slope(const at::Tensor& input, const at::Tensor& weight) {
  return at::where(input > 0, 1, along_channels(weight.to(compute_dtype(input)), input.dim()));
}

at::Tensor keep_non_positive(const at::Tensor& input, const at::Tensor& values) {
  return at::where(input > 0, 0, values);
}

// values where input is positive, else times the slope. If the slope has a tangent, the product's
// rule would add 0 * values to the tangent where input is positive, which is NaN if they are
// infinite; so those values are kept out of that product. (Only then, because a gradient of values
// becomes a sum of two terms this way, one of which is +0, and loses the sign of -0.)
at::Tensor times_local_slope(
    const at::Tensor& values, const at::Tensor& input, const at::Tensor& weight) {
  if (!weight._fw_grad(/*level=*/0).defined()) {
    return values * local_slope(input, weight);
  }
  const at::Tensor slopes = along_channels(weight.to(values.scalar_type()), input.dim());
  return at::where(input > 0, values, keep_non_positive(input, values) * slopes);
}

at::Tensor sum_to_weight(const at::Tensor& per_element, const at::Tensor& weight) {
  const at::Tensor broadcast = along_channels(weight, per_element.dim());
  return at::sum_to(per_element, broadcast.sym_sizes())
      .reshape_symint(weight.sym_sizes())
      .to(weight.scalar_type());
}

}  // namespace

at::Tensor along_channels(const at::Tensor& weight, int64_t dim) {
  if (weight.dim() == dim) {
    return weight;
  }
  c10::SymDimVector shape(dim, 1);
  if (dim > 1) {
    shape[1] = weight.sym_numel();
  }
  return weight.reshape_symint(shape);
}

at::Tensor prelu_composite(const at::Tensor& input, const at::Tensor& weight) {
  check_prelu_args(input, weight, "prelu");
  return times_local_slope(input.to(compute_dtype(input)), input, weight).to(input.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_composite(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  check_prelu_args(input, weight, "prelu_backward");
  check_grad_output(grad_output, input);
  const at::Tensor g = grad_output.to(compute_dtype(input));
  at::Tensor grad_input, grad_weight;
  if (output_mask[0]) {
    grad_input = times_local_slope(g, input, weight).to(input.scalar_type());
  }
  if (output_mask[1]) {
    grad_weight =
        sum_to_weight(keep_non_positive(input, input.to(compute_dtype(input)) * g), weight);
  }
  return {grad_input, grad_weight};
}

std::array<at::Tensor, 3> prelu_double_backward(
    const at::Tensor& grad_grad_input,
    const at::Tensor& grad_grad_weight,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 3> wanted) {
  const at::ScalarType acc = compute_dtype(input);
  const at::Tensor g = grad_output.to(acc);
  at::Tensor by_grad_output, by_input, by_weight;
  if (grad_grad_input.defined()) {
    const at::Tensor ggi = grad_grad_input.to(acc);
    if (wanted[0]) {
      by_grad_output = times_local_slope(ggi, input, weight);
    }
    if (wanted[2]) {
      by_weight = sum_to_weight(keep_non_positive(input, g * ggi), weight);
    }
  }
  if (grad_grad_weight.defined()) {
    const at::Tensor ggw = along_channels(grad_grad_weight.to(acc), input.dim());
    if (wanted[0]) {
      const at::Tensor term = keep_non_positive(input, input.to(acc) * ggw);
      by_grad_output = by_grad_output.defined() ? by_grad_output + term : term;
    }
    if (wanted[1]) {
      by_input = keep_non_positive(input, g * ggw).to(input.scalar_type());
    }
  }
  if (by_grad_output.defined()) {
    by_grad_output = by_grad_output.to(grad_output.scalar_type());
  }
  // Zeros, as PyTorch's own, where a gradient does not depend on an operand that wants one: an
  // undefined tensor would be an error in autograd.grad, and in compiled autograd, which assumes
  // that every result of a node is a tensor.
  if (grad_grad_input.defined() || grad_grad_weight.defined()) {
    if (wanted[1] && !by_input.defined()) {
      by_input = at::zeros_like(input);
    }
    if (wanted[2] && !by_weight.defined()) {
      by_weight = at::zeros_like(weight);
    }
  }
  return {by_grad_output, by_input, by_weight};
}

TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatchedDecomposition, m) {
  m.impl("prelu", prelu_composite);
  m.impl("prelu_backward", prelu_backward_composite);
}

}  // namespace torch_ext
