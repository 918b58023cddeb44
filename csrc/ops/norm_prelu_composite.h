// The internal operators of norm + PReLU written with PyTorch's own differentiable operators, for
// torch.func's transforms, forward-mode derivatives and second order. They follow the contract of
// the kernels (strict >, selects, one rounding), not speed.
#pragma once

#include "ops/norm_prelu.h"

namespace torch_ext {

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu_composite(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    double eps,
    bool instance);

at::Tensor norm_prelu_eval_composite(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps);

// Differentiable in the first five tensors, also through the statistics (training).
NormPreluGradients norm_prelu_backward_composite(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps,
    bool training,
    std::array<bool, 4> output_mask);

}  // namespace torch_ext
