#include "ops/prelu_args.h"

#include "ops/tensors.h"

namespace torch_ext {
namespace {

bool is_16_bit(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16;
}

bool is_supported(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || is_16_bit(dtype);
}

// The one pair of different dtypes: 16-bit data with slopes kept in float32.
bool is_mixed_pair(at::ScalarType input, at::ScalarType weight) {
  return is_16_bit(input) && weight == at::kFloat;
}

void check_defined(const at::Tensor& tensor, const char* argument) {
  TORCH_CHECK(
      tensor.defined(), "prelu: Expected `", argument, "` to be a tensor, but it is undefined");
}

// How many slopes there may be: one, or one per channel (dimension 1).
void check_slope_count(const at::Tensor& input, const at::Tensor& weight) {
  if (weight.sym_numel() != 1) {
    TORCH_CHECK(input.dim() > 0, "Not allow zero-dim input tensor.");
    const c10::SymInt channels = input.dim() > 1 ? input.sym_size(1) : c10::SymInt(1);
    TORCH_CHECK(
        channels == weight.sym_numel(),
        "Mismatch of parameter numbers and input channel size. Found parameter numbers = ",
        weight.sym_numel(), " and channel size = ", channels, ".");
  }
  TORCH_CHECK(
      weight.dim() <= 1,
      "prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = ", weight.dim());
}

}  // namespace

void check_same_dtype(const at::Tensor& input, const at::Tensor& weight) {
  TORCH_CHECK(
      input.scalar_type() == weight.scalar_type(), "prelu: Type promoting not supported. Got ",
      input.scalar_type(), " and ", weight.scalar_type());
}

void check_prelu_rules(const at::Tensor& input, const at::Tensor& weight) {
  check_defined(input, "input");
  check_defined(weight, "weight");
  if (!is_mixed_pair(input.scalar_type(), weight.scalar_type())) {
    check_same_dtype(input, weight);
  }
  check_slope_count(input, weight);
}

void check_prelu_args(
    const at::Tensor& input, const at::Tensor& weight, const char* name, const char* suffix) {
  check_prelu_rules(input, weight);
  TORCH_CHECK(
      input.device() == weight.device(),
      "Expected all tensors to be on the same device, but found `input` on ", input.device(),
      " and `weight` on ", weight.device());
  TORCH_CHECK_NOT_IMPLEMENTED(
      is_supported(input.scalar_type()), '"', name, suffix, "\" not implemented for '",
      c10::toString(input.scalar_type()), "'");
}

void check_grad_output(const at::Tensor& grad_output, const at::Tensor& input) {
  check_defined(grad_output, "grad_output");
  TORCH_CHECK(
      grad_output.layout() == input.layout(),
      "prelu_backward: Expected `grad_output` to have the layout of `input`, ", input.layout(),
      ", but got ", grad_output.layout());
  TORCH_CHECK(
      grad_output.sym_sizes() == input.sym_sizes(),
      "prelu_backward: Expected `grad_output` to have the shape of `input`, ", input.sym_sizes(),
      ", but got ", grad_output.sym_sizes());
  TORCH_CHECK(
      grad_output.scalar_type() == input.scalar_type(),
      "prelu_backward: Expected `grad_output` to have the dtype of `input`, ", input.scalar_type(),
      ", but got ", grad_output.scalar_type());
  TORCH_CHECK(
      grad_output.device() == input.device(),
      "Expected all tensors to be on the same device, but found `grad_output` on ",
      grad_output.device(), " and `input` on ", input.device());
}

PreluArgs::PreluArgs(
    const at::Tensor& input, const at::Tensor& weight, const char* name, const char* suffix) {
  check_prelu_args(input, weight, name, suffix);
  input_ = as_dense(input);
  weight_ = weight.contiguous();
  view_ = fold(input_, weight.numel());
}

at::Tensor PreluArgs::match(const at::Tensor& grad_output) const {
  check_grad_output(grad_output, input_);
  return in_order_of(input_, grad_output);
}

}  // namespace torch_ext
