// What an operator's autograd kernel asks before it runs: who is to differentiate it. Knows no
// operator and no device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

namespace torch_ext {

// A torch::autograd::Function raises under torch.func's transforms and has no forward-mode rule;
// composites of PyTorch's operators have both. Tensors may be undefined.
inline bool needs_composite(at::ArrayRef<at::Tensor> tensors) {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {
    return true;
  }
  return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) {
    return t.defined() && t._fw_grad(/*level=*/0).defined();
  });
}

// Whether autograd records. Tensors may be undefined.
inline bool needs_graph(at::ArrayRef<at::Tensor> tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) {
           return t.defined() && t.requires_grad();
         });
}

}  // namespace torch_ext
