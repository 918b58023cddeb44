// See norm_prelu_composite.h. Registers the rules for vmap.
#include "ops/norm_prelu_composite.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/rsqrt.h>
#include <torch/library.h>
#include <torch_ext/prelu.h>

#include "ops/norm_prelu_args.h"
#include "ops/prelu_args.h"
#include "ops/prelu_composite.h"

namespace torch_ext {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Statistics, or parameters, as (1, C, 1, ...) or (N, C, 1, ...), in the compute type.
at::Tensor along_input(const at::Tensor& values, const at::Tensor& input) {
  c10::SymDimVector shape(input.dim(), 1);
  shape[0] = values.dim() == 2 ? values.sym_size(0) : c10::SymInt(1);
  shape[1] = input.sym_size(1);
  return values.to(compute_dtype(input)).reshape_symint(shape);
}

at::Tensor parameter(const at::Tensor& values, const at::Tensor& input) {
  return along_input(values.reshape(-1), input);
}

// The dimensions that a statistic is taken over.
at::DimVector dims_of(const at::Tensor& input, bool instance) {
  at::DimVector dims;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d > 1 || (d == 0 && !instance)) {
      dims.push_back(d);
    }
  }
  return dims;
}

// Of each statistic's elements; broadcasts along the input. (To PyTorch, no dimensions are all.)
at::Tensor mean_of(const at::Tensor& values, bool instance) {
  const at::DimVector dims = dims_of(values, instance);
  return dims.empty() ? values : values.mean(dims, /*keepdim=*/true);
}

// Mean and biased variance, which broadcast along the input.
std::array<at::Tensor, 2> statistics_of(const at::Tensor& x, bool instance) {
  const at::Tensor mean = mean_of(x, instance);
  return {mean, mean_of((x - mean).square(), instance)};
}

// The value of one tensor with the derivatives of another.
at::Tensor with_derivatives_of(const at::Tensor& derivatives, const at::Tensor& value) {
  return value + (derivatives - derivatives.detach());
}

struct Normalised {
  at::Tensor deviation;  // x - mean
  at::Tensor rstd;
  at::Tensor scale;
  at::Tensor z;
};

Normalised normalise(
    const at::Tensor& x,
    const at::Tensor& mean,
    const at::Tensor& var,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double eps) {
  Normalised result;
  result.deviation = x - mean;
  result.rstd = at::rsqrt(var + eps);
  result.scale = is_defined(weight) ? result.rstd * parameter(tensor_of(weight), x) : result.rstd;
  result.z = result.deviation * result.scale;
  if (is_defined(bias)) {
    result.z = result.z + parameter(tensor_of(bias), x);
  }
  return result;
}

at::Tensor sum_to_parameter(const at::Tensor& per_element, const at::Tensor& values) {
  c10::SymDimVector shape(per_element.dim(), 1);
  shape[1] = per_element.sym_size(1);
  return at::sum_to(per_element, shape).reshape_symint(values.sym_sizes()).to(values.scalar_type());
}

at::Tensor prelu_of(const at::Tensor& z, const at::Tensor& slope, const at::Tensor& input) {
  return prelu_composite(z, slope.to(z.scalar_type())).to(input.scalar_type());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu_composite(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double eps,
    bool instance) {
  check_norm_prelu_args(input, slope, weight, bias);
  const at::Tensor x = input.to(compute_dtype(input));
  const auto [mean, var] = statistics_of(x, instance);
  const Normalised normalised = normalise(x, mean, var, weight, bias, eps);
  const c10::SymDimVector of_samples{input.sym_size(0), input.sym_size(1)};
  const auto shape = c10::SymIntArrayRef(of_samples).slice(instance ? 0 : 1);
  return {
      prelu_of(normalised.z, slope, input), mean.detach().reshape_symint(shape),
      var.detach().reshape_symint(shape)};
}

at::Tensor norm_prelu_eval_composite(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps) {
  check_statistics(input, mean, var);
  check_norm_prelu_args(input, slope, weight, bias);
  const at::Tensor x = input.to(compute_dtype(input));
  const Normalised normalised =
      normalise(x, along_input(mean, x), along_input(var, x), weight, bias, eps);
  return prelu_of(normalised.z, slope, input);
}

NormPreluGradients norm_prelu_backward_composite(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps,
    bool training,
    std::array<bool, 4> output_mask) {
  check_statistics(input, mean, var);
  check_norm_prelu_args(input, slope, weight, bias);
  check_grad_output(grad_output, input);
  const bool instance = mean.dim() == 2;
  const at::Tensor x = input.to(compute_dtype(input));
  at::Tensor mean_here = along_input(mean, x);
  at::Tensor var_here = along_input(var, x);
  if (training) {
    // Values as they were in the forward, so that every element is on the same side.
    const auto [again_mean, again_var] = statistics_of(x, instance);
    mean_here = with_derivatives_of(again_mean, mean_here);
    var_here = with_derivatives_of(again_var, var_here);
  }
  const Normalised n = normalise(x, mean_here, var_here, weight, bias, eps);
  // The operator, not its composite: its derivative gives zeros where a gradient does not depend on
  // an operand, as PyTorch's does, and autograd.grad refuses what is undefined.
  const auto [gz, grad_slope] = torch_ext::prelu_backward(
      grad_output.to(x.scalar_type()), n.z, slope.to(x.scalar_type()), {true, output_mask[1]});
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) {
    at::Tensor centred = gz;
    if (training) {
      centred = gz - mean_of(gz, instance) -
                n.deviation * n.rstd * n.rstd * mean_of(gz * n.deviation, instance);
    }
    grad_input = (centred * n.scale).to(input.scalar_type());
  }
  if (output_mask[2] && is_defined(weight)) {
    grad_weight = sum_to_parameter(gz * n.deviation * n.rstd, tensor_of(weight));
  }
  if (output_mask[3] && is_defined(bias)) {
    grad_bias = sum_to_parameter(gz, tensor_of(bias));
  }
  return {
      grad_input, output_mask[1] ? grad_slope.to(slope.scalar_type()) : at::Tensor(), grad_weight,
      grad_bias};
}

TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatchedDecomposition, m) {
  m.impl("_norm_prelu", norm_prelu_composite);
  m.impl("_norm_prelu_eval", norm_prelu_eval_composite);
  m.impl("_norm_prelu_backward", norm_prelu_backward_composite);
}

}  // namespace torch_ext
