// Mixed precision, as the pair of layers has it: a norm takes its input as it is, PReLU casts what
// the norm gives, so the output has the dtype that autocast names. Here z is never rounded before;
// a float32 slope stays float32. Knows no kernel.
#include <ATen/autocast_mode.h>
#include <torch/library.h>
#include <torch_ext/norm_prelu.h>

#include "ops/norm_prelu_args.h"

namespace torch_ext {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// What the fused operator takes beside this input. A 16-bit slope of another type than the data's
// is first rounded to autocast's, as PReLU's would be.
at::Tensor slope_for(
    const at::Tensor& input,
    const at::Tensor& slope,
    at::ScalarType target,
    c10::DeviceType device) {
  if (slope.scalar_type() == input.scalar_type() || slope.scalar_type() == compute_dtype(input)) {
    return slope;
  }
  const at::Tensor cast = at::autocast::cached_cast(target, slope, device);
  return cast.scalar_type() == input.scalar_type() || input.scalar_type() == at::kDouble
             ? cast
             : cast.to(compute_dtype(input));
}

template <auto norm_prelu, c10::DeviceType device, c10::DispatchKey key>
at::Tensor under_autocast(
    const at::Tensor& input,
    const at::Tensor& slope,
    const OptionalTensor& running_mean,
    const OptionalTensor& running_var,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    bool training,
    double momentum,
    double eps) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const at::ScalarType target = at::autocast::get_autocast_dtype(device);
  const at::Tensor output = norm_prelu(
      input, slope_for(input, slope, target, device), running_mean, running_var, weight, bias,
      training, momentum, eps);
  return at::autocast::cached_cast(target, output, device);
}

template <c10::DeviceType device, c10::DispatchKey key>
void register_for(torch::Library& m) {
  m.impl("batch_norm_prelu", under_autocast<batch_norm_prelu, device, key>);
  m.impl("instance_norm_prelu", under_autocast<instance_norm_prelu, device, key>);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, AutocastCPU, m) {
  register_for<c10::kCPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastCUDA, m) {
  register_for<c10::kCUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastXPU, m) {
  register_for<c10::kXPU, c10::DispatchKey::AutocastXPU>(m);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastMPS, m) {
  register_for<c10::kMPS, c10::DispatchKey::AutocastMPS>(m);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastMTIA, m) {
  register_for<c10::kMTIA, c10::DispatchKey::AutocastMTIA>(m);
}

}  // namespace torch_ext
