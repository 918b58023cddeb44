// Both operators written with PyTorch's own differentiable operators, for what no kernel of ours
// covers: torch.func transforms, forward-mode derivatives, second order, other devices. They follow
// the contract of the kernels (strict >, selects, one rounding), not speed.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

namespace torch_ext {

at::Tensor prelu_composite(const at::Tensor& input, const at::Tensor& weight);

std::tuple<at::Tensor, at::Tensor> prelu_backward_composite(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask);

// Derivatives of prelu_backward in its three tensors, given the gradients of its two results
// (either may be undefined). `wanted` as in output_mask.
std::array<at::Tensor, 3> prelu_double_backward(
    const at::Tensor& grad_grad_input,
    const at::Tensor& grad_grad_weight,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 3> wanted);

// What at::prelu does on devices and layouts that are not ours, without entering aten::prelu itself
// (which may be overridden to run on this operator). On devices also 16-bit data with a float32
// slope.
bool is_foreign(const at::Tensor& input, const at::Tensor& weight);
at::Tensor prelu_foreign(const at::Tensor& input, const at::Tensor& weight);

}  // namespace torch_ext
