// The internal operators that batch_norm_prelu and instance_norm_prelu call. They are functional:
// the two public operators update the running statistics. Statistics have the compute type, and the
// shape (C) or, for instance norm, (N, C); var is the biased one.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

namespace torch_ext {

// In the order of output_mask.
using NormPreluGradients = std::tuple<
    at::Tensor,   // of input
    at::Tensor,   // of slope
    at::Tensor,   // of weight
    at::Tensor>;  // of bias

// Defines them and the public operators in the library's namespace, which prelu.cpp opens.
void define_norm_prelu(torch::Library& library);

// By the data's own statistics: (output, mean, var). The statistics are not differentiable.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_prelu(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    double eps,
    bool instance);

// By given statistics of shape (C), of the compute type or of input's.
at::Tensor norm_prelu_eval(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& mean,
    const at::Tensor& var,
    double eps);

// Gradients of either. `training`: the statistics are the data's own, so that gradients pass
// through them.
NormPreluGradients norm_prelu_backward(
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
