// Derivatives of norm + PReLU, in terms of operators. Knows no device, kernel or layout.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd_state.h"
#include "ops/norm_prelu.h"
#include "ops/norm_prelu_args.h"
#include "ops/norm_prelu_composite.h"

namespace torch_ext {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Statistics = std::array<at::Tensor, 2>;  // mean, biased variance
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

}  // namespace

// (Not in the unnamed namespace, because profiles and messages show the type's name.)
struct NormPreluBackward : public torch::autograd::Function<NormPreluBackward> {
  static constexpr bool is_traceable = true;

  // With given statistics their values are kept as copies: the running buffers that they come from
  // go on changing. Without, they are found here, and stored in `found`. (They have no gradient. As
  // results that are marked so, compiled autograd would refuse the node.)
  static at::Tensor forward(
      AutogradContext* ctx,
      const at::Tensor& input,
      const at::Tensor& slope,
      const OptionalTensor& weight,
      const OptionalTensor& bias,
      const OptionalTensor& given_mean,
      const OptionalTensor& given_var,
      double eps,
      bool instance,
      Statistics* found) {
    const bool training = found != nullptr;
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::Tensor output, mean, var;
    if (training) {
      std::tie(output, mean, var) = norm_prelu(input, slope, weight, bias, eps, instance);
      *found = {mean, var};
    } else {
      mean = tensor_of(given_mean).to(compute_dtype(input), /*non_blocking=*/false, /*copy=*/true);
      var = tensor_of(given_var).to(compute_dtype(input), /*non_blocking=*/false, /*copy=*/true);
      output = norm_prelu_eval(input, slope, weight, bias, mean, var, eps);
    }
    ctx->save_for_backward({input, slope, tensor_of(weight), tensor_of(bias), mean, var});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["training"] = training;
    ctx->set_materialize_grads(false);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    constexpr size_t kArguments = 9;
    variable_list gradients(kArguments);
    if (!grads[0].defined()) {
      return gradients;
    }
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &weight = saved[2], &bias = saved[3];
    // Of the arguments, those that are tensors are counted, and present.
    size_t next = 2;
    const bool wants_weight = weight.defined() && ctx->needs_input_grad(next++);
    const bool wants_bias = bias.defined() && ctx->needs_input_grad(next++);
    std::tie(gradients[0], gradients[1], gradients[2], gradients[3]) = norm_prelu_backward(
        grads[0], saved[0], saved[1], weight, bias, saved[4], saved[5],
        ctx->saved_data["eps"].toDouble(), ctx->saved_data["training"].toBool(),
        {ctx->needs_input_grad(0), ctx->needs_input_grad(1), wants_weight, wants_bias});
    return gradients;
  }
};

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu_autograd(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double eps,
    bool instance) {
  const std::array<at::Tensor, 4> tensors{input, slope, tensor_of(weight), tensor_of(bias)};
  if (needs_composite(tensors)) {
    return norm_prelu_composite(input, slope, weight, bias, eps, instance);
  }
  if (needs_graph(tensors)) {
    check_norm_prelu_args(input, slope, weight, bias);  // apply() knows no names
    Statistics found;
    const at::Tensor output = NormPreluBackward::apply(
        input, slope, weight, bias, OptionalTensor(), OptionalTensor(), eps, instance, &found);
    return {output, found[0], found[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return norm_prelu(input, slope, weight, bias, eps, instance);
}

at::Tensor norm_prelu_eval_autograd(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps) {
  const std::array<at::Tensor, 4> tensors{input, slope, tensor_of(weight), tensor_of(bias)};
  if (needs_composite(tensors)) {
    return norm_prelu_eval_composite(input, slope, weight, bias, mean, var, eps);
  }
  if (needs_graph(tensors)) {
    check_statistics(input, mean, var);  // apply() knows no names
    check_norm_prelu_args(input, slope, weight, bias);
    return NormPreluBackward::apply(
        input, slope, weight, bias, OptionalTensor(mean), OptionalTensor(var), eps,
        /*instance=*/false, /*found=*/nullptr);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return norm_prelu_eval(input, slope, weight, bias, mean, var, eps);
}

// Second order goes by PyTorch's operators from here on.
NormPreluGradients norm_prelu_backward_autograd(
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
  const std::array<at::Tensor, 5> tensors{
      grad_output, input, slope, tensor_of(weight), tensor_of(bias)};
  if (needs_composite(tensors) || needs_graph(tensors)) {
    return norm_prelu_backward_composite(
        grad_output, input, slope, weight, bias, mean, var, eps, training, output_mask);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return norm_prelu_backward(
      grad_output, input, slope, weight, bias, mean, var, eps, training, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  m.impl("_norm_prelu", norm_prelu_autograd);
  m.impl("_norm_prelu_eval", norm_prelu_eval_autograd);
  m.impl("_norm_prelu_backward", norm_prelu_backward_autograd);
}

}  // namespace torch_ext
