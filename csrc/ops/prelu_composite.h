// Both operators composed of PyTorch's own differentiable operators, for what our kernels do not
// cover: torch.func transforms, forward-mode derivatives, second order, other devices. They keep
// the contract of the kernels (strict >, selects, one rounding) and are not made for speed.
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

// A (C) tensor as (1, C, 1, ...), to be broadcast over the channels of `dim` dimensions.
at::Tensor along_channels(const at::Tensor& weight, int64_t dim);

}  // namespace torch_ext
