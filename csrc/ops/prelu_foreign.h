// PReLU on tensors for which we have no kernels: other devices (MPS, XPU, ...) and layouts (sparse,
// nested, quantized, MKL-DNN).
#pragma once

#include <ATen/core/Tensor.h>

namespace torch_ext {

bool is_foreign(const at::Tensor& input, const at::Tensor& weight);

// What at::prelu does there, without entering aten::prelu itself (which may be overridden to run on
// this operator). In addition, other devices support 16-bit data with a float32 slope.
at::Tensor prelu_foreign(const at::Tensor& input, const at::Tensor& weight);

}  // namespace torch_ext
