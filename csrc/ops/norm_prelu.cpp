// Norm + PReLU: schemas, the way to the internal operators, and their Meta kernels. Knows no
// device, no derivative and no running statistics.
#include "ops/norm_prelu.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/norm_prelu_args.h"
#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu_meta(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double /*eps*/,
    bool instance) {
  check_norm_prelu_args(input, slope, weight, bias);
  return {
      empty_output(input), empty_statistics(input, instance), empty_statistics(input, instance)};
}

at::Tensor norm_prelu_eval_meta(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double /*eps*/) {
  check_statistics(input, mean, var);
  check_norm_prelu_args(input, slope, weight, bias);
  return empty_output(input);
}

NormPreluGradients norm_prelu_backward_meta(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double /*eps*/,
    bool /*training*/,
    std::array<bool, 4> output_mask) {
  check_statistics(input, mean, var);
  check_norm_prelu_args(input, slope, weight, bias);
  check_grad_output(grad_output, input);
  return {
      output_mask[0] ? empty_output(input) : at::Tensor(), empty_gradient(output_mask[1], slope),
      empty_gradient(output_mask[2], weight), empty_gradient(output_mask[3], bias)};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double eps,
    bool instance) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::_norm_prelu", "")
                             .typed<decltype(norm_prelu)>();
  return op.call(input, slope, weight, bias, eps, instance);
}

at::Tensor norm_prelu_eval(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::_norm_prelu_eval", "")
                             .typed<decltype(norm_prelu_eval)>();
  return op.call(input, slope, weight, bias, mean, var, eps);
}

NormPreluGradients norm_prelu_backward(
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
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_ext::_norm_prelu_backward", "")
                             .typed<decltype(norm_prelu_backward)>();
  return op.call(grad_output, input, slope, weight, bias, mean, var, eps, training, output_mask);
}

void define_norm_prelu(torch::Library& library) {
  // As for prelu: kernels take any strides.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  library.def(
      "batch_norm_prelu(Tensor input, Tensor slope, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor? weight=None, Tensor? bias=None, bool training=False, "
      "float momentum=0.1, float eps=1e-05) -> Tensor",
      tags);
  library.def(
      "instance_norm_prelu(Tensor input, Tensor slope, Tensor(a!)? running_mean=None, "
      "Tensor(b!)? running_var=None, Tensor? weight=None, Tensor? bias=None, "
      "bool use_input_stats=True, float momentum=0.1, float eps=1e-05) -> Tensor",
      tags);
  library.def(
      "_norm_prelu(Tensor input, Tensor slope, Tensor? weight, Tensor? bias, float eps, "
      "bool instance) -> (Tensor output, Tensor mean, Tensor var)",
      tags);
  library.def(
      "_norm_prelu_eval(Tensor input, Tensor slope, Tensor? weight, Tensor? bias, Tensor mean, "
      "Tensor var, float eps) -> Tensor",
      tags);
  library.def(
      "_norm_prelu_backward(Tensor grad_output, Tensor input, Tensor slope, Tensor? weight, "
      "Tensor? bias, Tensor mean, Tensor var, float eps, bool training, bool[4] output_mask) -> "
      "(Tensor grad_input, Tensor grad_slope, Tensor grad_weight, Tensor grad_bias)",
      tags);
}

TORCH_LIBRARY_IMPL(torch_ext, Meta, m) {
  m.impl("_norm_prelu", norm_prelu_meta);
  m.impl("_norm_prelu_eval", norm_prelu_eval_meta);
  m.impl("_norm_prelu_backward", norm_prelu_backward_meta);
}

}  // namespace torch_ext
