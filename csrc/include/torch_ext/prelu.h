// The fused, learnable PReLU as a C++ function, for programs that use LibTorch.
//
//   #include <torch_ext/prelu.h>
//   at::Tensor output = torch_ext::prelu(input, weight);   // differentiable in both arguments
//
// Shapes   input (), (S) or (N, C, *); weight () or (1) for one slope, or (C) for one per channel,
//          C = input.size(1).
// Dtypes   float64, float32, float16, bfloat16, the same for both; or a 16-bit input with a float32
//          weight, whose output is 16-bit and whose weight gradient is float32.
// Devices  CPU and CUDA; on other devices the call behaves as at::prelu.
// Errors   c10::Error with the messages of at::prelu; c10::NotImplementedError for other dtypes.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch_ext/export.h>

#include <array>
#include <tuple>

namespace torch_ext {

// input > 0 ? input : weight * input, elementwise, in input's shape, dtype and memory format.
TORCH_EXT_API at::Tensor prelu(const at::Tensor& input, const at::Tensor& weight);

// Both gradients in one pass over grad_output and input:
//   grad_input  = input > 0 ? grad_output : weight * grad_output        (input's shape and dtype)
//   grad_weight = sum over the elements of each slope of
//                 input > 0 ? 0 : input * grad_output                   (weight's shape and dtype)
// grad_output has input's shape, dtype and device, and any strides. output_mask says which of the
// two are wanted; the other one is an undefined tensor and costs nothing. Differentiable in all
// three tensors.
TORCH_EXT_API std::tuple<at::Tensor, at::Tensor> prelu_backward(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask);

// "0.1.0+pt2.15cu130": the version of this library, and the PyTorch and CUDA ("cpu": none) that it
// was built for.
TORCH_EXT_API const char* version();

}  // namespace torch_ext
