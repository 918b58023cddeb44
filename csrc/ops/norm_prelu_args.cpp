#include "ops/norm_prelu_args.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceType.h>

#include "ops/prelu_args.h"
#include "ops/tensors.h"

namespace torch_ext {
namespace {

// Elements from one index of dimension 1 on; PyTorch's checks see a 1-D tensor as one channel less.
c10::SymInt spatial_size(const at::Tensor& input) {
  c10::SymInt size = 1;
  for (int64_t d = 2; d < input.dim(); ++d) {
    size = size * input.sym_size(d);
  }
  return size;
}

void check_defined(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(
      tensor.defined(), "norm_prelu: Expected `", name, "` to be a tensor, but it is undefined");
}

void check_input(const at::Tensor& input) {
  check_defined(input, "input");
  TORCH_CHECK(
      input.dim() >= 2,
      "norm_prelu: Expected `input` to have at least 2 dimensions, but got: ndim = ", input.dim());
}

void check_count(
    const std::optional<at::Tensor>& tensor, const char* name, const at::Tensor& input) {
  TORCH_CHECK(
      !is_defined(tensor) || tensor_of(tensor).sym_numel() == input.sym_size(1), name,
      " should contain ", input.sym_size(1), " elements not ", tensor_of(tensor).sym_numel());
}

void check_running(
    const at::Tensor& input,
    const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var) {
  TORCH_CHECK_VALUE(
      is_defined(running_mean) == is_defined(running_var),
      "running_mean and running_var must either both be None or neither be None");
  check_count(running_mean, "running_mean", input);
  check_count(running_var, "running_var", input);
  for (const auto& [tensor, name] :
       {std::pair{&running_mean, "running_mean"}, {&running_var, "running_var"}}) {
    TORCH_CHECK(
        !is_defined(*tensor) || !tensor_of(*tensor).requires_grad(),
        "norm_prelu is not differentiable in ", name,
        ". This input cannot have requires_grad True.");
  }
}

void check_device(
    const std::optional<at::Tensor>& tensor, const char* name, const at::Tensor& input) {
  TORCH_CHECK(
      !is_defined(tensor) || tensor_of(tensor).device() == input.device(),
      "Expected all tensors to be on the same device, but found `", name, "` on ",
      tensor_of(tensor).device(), " and `input` on ", input.device());
}

// The type of the values beside 16-bit data may be float32, that of others is the data's.
void check_parameter(
    const std::optional<at::Tensor>& tensor, const char* name, const at::Tensor& input) {
  check_device(tensor, name, input);
  if (!is_defined(tensor)) {
    return;
  }
  TORCH_CHECK(
      tensor_of(tensor).scalar_type() == input.scalar_type() ||
          tensor_of(tensor).scalar_type() == compute_dtype(input),
      "mixed dtype (", c10::DeviceTypeName(input.device().type(), /*lower_case=*/false),
      "): expect parameter to have scalar type of Float or of `input`, ", input.scalar_type(),
      ", but `", name, "` has ", tensor_of(tensor).scalar_type());
}

// Whether samples follow one another in memory.
bool is_sample_major(const at::Tensor& dense) {
  return dense.size(0) <= 1 || dense.stride(0) * dense.size(0) == dense.numel();
}

}  // namespace

void check_batch_norm_rules(
    const at::Tensor& input,
    const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var,
    bool training,
    double eps) {
  check_input(input);
  if (training) {
    TORCH_CHECK_VALUE(
        input.sym_size(0) * spatial_size(input) != 1,
        "Expected more than 1 value per channel when training, got input size torch.Size(",
        input.sym_sizes(), ")");
    TORCH_CHECK_VALUE(eps > 0, "batch_norm eps must be positive during training, but got ", eps);
  }
  TORCH_CHECK_VALUE(eps >= 0, "batch_norm eps must be non-negative, but got ", eps);
  check_running(input, running_mean, running_var);
  TORCH_CHECK(
      training || is_defined(running_mean), "running_mean must be defined in evaluation mode");
  check_parameter(running_mean, "running_mean", input);
  check_parameter(running_var, "running_var", input);
}

void check_instance_norm_rules(
    const at::Tensor& input,
    const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var,
    bool use_input_stats,
    double eps) {
  check_input(input);
  TORCH_CHECK_VALUE(
      !use_input_stats || spatial_size(input) != 1,
      "Expected more than 1 spatial element when training, got input size torch.Size(",
      input.sym_sizes(), ")");
  TORCH_CHECK_VALUE(eps >= 0, "instance_norm eps must be non-negative, but got ", eps);
  check_running(input, running_mean, running_var);
  TORCH_CHECK(
      use_input_stats || is_defined(running_mean),
      "Expected running_mean and running_var to be defined when use_input_stats is false");
}

void check_norm_prelu_args(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias) {
  check_input(input);
  check_defined(slope, "slope");
  check_device(slope, "slope", input);
  check_device(weight, "weight", input);
  check_device(bias, "bias", input);
  TORCH_CHECK_NOT_IMPLEMENTED(
      at::isFloatingType(input.scalar_type()), "\"batch_norm\" not implemented for '",
      c10::toString(input.scalar_type()), "'");
  check_count(weight, "weight", input);
  check_count(bias, "bias", input);
  check_parameter(weight, "weight", input);
  check_parameter(bias, "bias", input);
  check_prelu_args(input, slope, "batch_norm");
}

bool check_statistics(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var) {
  check_input(input);
  for (const auto& [tensor, name] : {std::pair{&mean, "mean"}, {&var, "var"}}) {
    check_defined(*tensor, name);
    check_parameter(*tensor, name, input);
    const bool of_batch = tensor->dim() == 1 && tensor->sym_size(0) == input.sym_size(1);
    const bool of_samples = tensor->dim() == 2 && tensor->sym_size(0) == input.sym_size(0) &&
                            tensor->sym_size(1) == input.sym_size(1);
    TORCH_CHECK(
        of_batch || of_samples, "norm_prelu: Expected `", name,
        "` to have the shape (C) or (N, C) of `input`, ", input.sym_sizes(), ", but got ",
        tensor->sym_sizes());
  }
  TORCH_CHECK(
      mean.dim() == var.dim() && mean.scalar_type() == var.scalar_type(),
      "norm_prelu: Expected `mean` and `var` to be alike");
  return mean.dim() == 2;
}

at::Tensor empty_statistics(const at::Tensor& input, bool instance) {
  const c10::SymDimVector of_samples{input.sym_size(0), input.sym_size(1)};
  const auto shape = c10::SymIntArrayRef(of_samples).slice(instance ? 0 : 1);
  return at::empty_symint(shape, input.options().dtype(compute_dtype(input)));
}

at::Tensor empty_gradient(bool wanted, const std::optional<at::Tensor>& parameter) {
  return wanted && is_defined(parameter)
             ? at::empty_like(tensor_of(parameter), at::MemoryFormat::Contiguous)
             : at::Tensor();
}

NormPreluArgs::NormPreluArgs(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    bool instance) {
  check_norm_prelu_args(input, slope, weight, bias);
  dense_ = as_dense(input);
  // Statistics of a sample need its elements in one piece: the one case of a dense input that is
  // copied, where another dimension lies outside of the samples.
  input_ = instance && !is_sample_major(dense_) ? dense_.contiguous() : dense_;
  slope_ = slope.contiguous();
  weight_ = is_defined(weight) ? tensor_of(weight).contiguous() : at::Tensor();
  bias_ = is_defined(bias) ? tensor_of(bias).contiguous() : at::Tensor();
  set_view(instance);
}

NormPreluArgs::NormPreluArgs(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& mean,
    const at::Tensor& var)
    : NormPreluArgs(input, slope, weight, bias, /*instance=*/check_statistics(input, mean, var)) {
  mean_ = mean.contiguous();
  var_ = var.contiguous();
}

void NormPreluArgs::set_view(bool instance) {
  channels_ = input_.size(1);
  if (!instance || input_.numel() == 0) {
    samples_ = instance ? input_.size(0) : 1;
    view_ = fold(input_, channels_);
    return;
  }
  samples_ = input_.size(0);
  const ChannelView sample = fold(input_.select(0, 0), channels_, /*channel_dim=*/0);
  if (sample.outer == 1) {
    view_ = {1, samples_ * channels_, sample.inner};  // all in one piece
  } else {
    view_ = sample;
    runs_ = samples_;
  }
}

at::Tensor NormPreluArgs::match(const at::Tensor& grad_output) const {
  check_grad_output(grad_output, dense_);
  return in_order_of(input_, grad_output);
}

at::Tensor NormPreluArgs::in_order_of_caller(const at::Tensor& result) const {
  return in_order_of(dense_, result);
}

}  // namespace torch_ext
