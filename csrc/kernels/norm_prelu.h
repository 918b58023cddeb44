// Batch or instance norm and PReLU as channelwise operations (operation.h): the only place in the
// kernels that has their formulas for elements. norm_prelu_steps.h has what is computed once for
// each statistic.
//
//   z = (x - mean) * scale + bias      scale = weight / sqrt(var + eps)
//   y = z > 0 ? z : slope * z
//
// Ioffe and Szegedy, "Batch Normalization" (arXiv:1502.03167), with the PReLU of prelu.h. The
// output's gradient passes the PReLU first: gz = z > 0 ? g : slope * g. Forward and backward
// compute z by the same operations on the same values, so an element is on the same side of the
// PReLU in both.
#pragma once

#include <array>

#include "kernels/operation.h"

namespace torch_ext {

// Sums of d = x - shift and of its square: the statistics of x, once the shift is added again.
struct Moments {
  static constexpr int kInputs = 1;  // x
  static constexpr int kOutputs = 0;
  static constexpr int kParams = 1;  // shift
  static constexpr int kSums = 2;    // d, d * d

  template <typename V, typename Sums>
  static constexpr std::array<V, 0> apply(
      const std::array<V, 1>& inputs, const std::array<V, 1>& params, Sums& sums) {
    const V d = inputs[0] - params[0];
    sums[0].add(d);
    sums[1].add_product(d, d);
    return {};
  }
};

// y
struct NormPreluForward {
  static constexpr int kInputs = 1;   // x
  static constexpr int kOutputs = 1;  // y
  static constexpr int kParams = 4;   // mean, scale, bias, slope
  static constexpr int kSums = 0;

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 1>& inputs, const std::array<V, 4>& params, Sums&) {
    const auto& [mean, scale, bias, slope] = params;
    const V z = multiply_add(inputs[0] - mean, scale, bias);
    return {select(z > V(0), z, slope * z)};
  }
};

// The sums that all gradients are made of, and dL/dx = gz * scale with given statistics: nothing
// passes through the statistics then.
struct NormPreluReduce {
  static constexpr int kInputs = 2;   // g, x
  static constexpr int kOutputs = 1;  // dL/dx
  static constexpr int kParams = 4;   // mean, scale, bias, slope
  static constexpr int kSums = 3;     // gz; gz * (x - mean); g * z where z <= 0

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 2>& inputs, const std::array<V, 4>& params, Sums& sums) {
    const auto& [g, x] = inputs;
    const auto& [mean, scale, bias, slope] = params;
    const V d = x - mean;
    const V z = multiply_add(d, scale, bias);
    const auto positive = z > V(0);
    const V gz = select(positive, g, slope * g);
    sums[0].add(gz);
    sums[1].add_product(gz, d);
    sums[2].add_product(g, z, !positive);
    return {gz * scale};
  }
};

// dL/dx = gz * scale + offset + (x - mean) * factor. Offset and factor take away what passes
// through the statistics.
struct NormPreluApply {
  static constexpr int kInputs = 2;   // g, x
  static constexpr int kOutputs = 1;  // dL/dx
  static constexpr int kParams = 6;   // mean, scale, bias, slope, offset, factor
  static constexpr int kSums = 0;

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 2>& inputs, const std::array<V, 6>& params, Sums&) {
    const auto& [g, x] = inputs;
    const auto& [mean, scale, bias, slope, offset, factor] = params;
    const V d = x - mean;
    const V z = multiply_add(d, scale, bias);
    const V gz = select(z > V(0), g, slope * g);
    return {multiply_add(d, factor, multiply_add(gz, scale, offset))};
  }
};

}  // namespace torch_ext
