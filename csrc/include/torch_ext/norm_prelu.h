// Batch or instance norm and PReLU in one: the norm's output is never written to memory, and only
// `input` is kept for the backward, where the two layers keep two tensors of its size.
//
//   #include <torch_ext/norm_prelu.h>
//   at::Tensor output = torch_ext::batch_norm_prelu(
//       input, slope, running_mean, running_var, weight, bias, /*training=*/true);
//
// Shapes   input (N, C, *); slope () or (1) for one slope, or (C); all others (C), or none.
// Dtypes   input float64, float32, float16 or bfloat16; every other tensor of input's dtype, or
//          float32 with 16-bit input. The output has input's dtype and memory format.
// Devices  CPU and CUDA. Elsewhere PyTorch's norm runs, then torch_ext::prelu.
// Errors   c10::Error with the messages of torch.nn.functional's norms and of prelu;
//          c10::ValueError where those raise it, c10::NotImplementedError for other dtypes.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch_ext/export.h>

#include <optional>

namespace torch_ext {

// prelu(batch_norm(input), slope), differentiable in input, slope, weight and bias. With
// z = (input - mean) / sqrt(var + eps) * weight + bias it is z > 0 ? z : slope * z.
// With `training`, mean and var are those of the data, and running_mean and running_var, if they
// are given, are moved towards them by `momentum` (var with the factor M / (M - 1) for M elements
// per channel). Otherwise mean and var are running_mean and running_var.
TORCH_EXT_API at::Tensor batch_norm_prelu(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var,
    const std::optional<at::Tensor>& weight = {},
    const std::optional<at::Tensor>& bias = {},
    bool training = false,
    double momentum = 0.1,
    double eps = 1e-5);

// prelu(instance_norm(input), slope): the same with statistics for each sample (use_input_stats).
// Running statistics are moved towards the mean of the statistics of the samples.
TORCH_EXT_API at::Tensor instance_norm_prelu(
    const at::Tensor& input,
    const at::Tensor& slope,
    const std::optional<at::Tensor>& running_mean = {},
    const std::optional<at::Tensor>& running_var = {},
    const std::optional<at::Tensor>& weight = {},
    const std::optional<at::Tensor>& bias = {},
    bool use_input_stats = true,
    double momentum = 0.1,
    double eps = 1e-5);

}  // namespace torch_ext
