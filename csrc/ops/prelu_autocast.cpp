// Mixed-precision policy: the input is cast as PyTorch does, so the output has PyTorch's dtype; a
// float32 weight stays float32, so its gradient is never rounded to 16 bits. On devices for which
// we have no kernels both are cast, as PyTorch does. Knows no kernel.
#include <ATen/autocast_mode.h>
#include <torch/library.h>
#include <torch_ext/prelu.h>

namespace torch_ext {
namespace {

template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor prelu_autocast(const at::Tensor& input, const at::Tensor& weight) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const at::ScalarType target = at::autocast::get_autocast_dtype(device);
  const at::Tensor cast_input = at::autocast::cached_cast(target, input, device);
  constexpr bool kOurs = device == c10::kCPU || device == c10::kCUDA;
  const bool keep_weight =
      kOurs && cast_input.scalar_type() == target && weight.scalar_type() == at::kFloat;
  return torch_ext::prelu(
      cast_input, keep_weight ? weight : at::autocast::cached_cast(target, weight, device));
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, AutocastCPU, m) {
  m.impl("prelu", prelu_autocast<c10::kCPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastCUDA, m) {
  m.impl("prelu", prelu_autocast<c10::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastXPU, m) {
  m.impl("prelu", prelu_autocast<c10::kXPU, c10::DispatchKey::AutocastXPU>);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastMPS, m) {
  m.impl("prelu", prelu_autocast<c10::kMPS, c10::DispatchKey::AutocastMPS>);
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastMTIA, m) {
  m.impl("prelu", prelu_autocast<c10::kMTIA, c10::DispatchKey::AutocastMTIA>);
}

}  // namespace torch_ext
