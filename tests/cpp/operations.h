// Operations for the engines' tests, CPU and CUDA: a made-up one that fills every count the engines
// promise to take, and those of norm + PReLU, for which no line of an engine was written. Each has
// its formula a second time, in plain scalars of any width R: what a test expects.
#pragma once

#include <array>

#include "kernels/operation.h"
#include "kernels/prelu.h"

namespace torch_ext::testing_operations {

// What one element gives: the outputs, and its terms of the sums.
template <typename Op, typename R>
struct Expected {
  std::array<R, Op::kOutputs> outputs{};
  std::array<R, Op::kSums> terms{};
};

// Two inputs, an output, six params, three sums; products and plain terms, all and some of them.
struct Everything {
  static constexpr int kInputs = 2;
  static constexpr int kOutputs = 1;
  static constexpr int kParams = 6;
  static constexpr int kSums = 3;

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 2>& inputs, const std::array<V, 6>& params, Sums& sums) {
    const auto& [a, b] = inputs;
    const auto& [p, q, r, s, t, v] = params;
    const auto above = a > p;
    sums[0].add(a + p, b > V(0));
    sums[1].add_product(a, b);
    sums[2].add_product(b, q, (!above) & (b > a));
    return {select(above, q * a + r * b, multiply_add(s, b, t) - v)};
  }

  template <typename R>
  static Expected<Everything, R> expected(
      const std::array<R, 2>& inputs, const std::array<R, 6>& params) {
    const auto [a, b] = inputs;
    const auto [p, q, r, s, t, v] = params;
    return {
        {a > p ? q * a + r * b : s * b + t - v},
        {b > 0 ? a + p : R(0), a * b, !(a > p) && b > a ? b * q : R(0)}};
  }
};

// Sums of d = x - shift and of its square.
struct Moments {
  static constexpr int kInputs = 1;
  static constexpr int kOutputs = 0;
  static constexpr int kParams = 1;
  static constexpr int kSums = 2;

  template <typename V, typename Sums>
  static constexpr std::array<V, 0> apply(
      const std::array<V, 1>& inputs, const std::array<V, 1>& params, Sums& sums) {
    const V d = inputs[0] - params[0];
    sums[0].add(d);
    sums[1].add_product(d, d);
    return {};
  }

  template <typename R>
  static Expected<Moments, R> expected(
      const std::array<R, 1>& inputs, const std::array<R, 1>& params) {
    const R d = inputs[0] - params[0];
    return {{}, {d, d * d}};
  }
};

// y = z > 0 ? z : slope * z, with z = (x - mean) * scale + bias
struct NormPreluForward {
  static constexpr int kInputs = 1;
  static constexpr int kOutputs = 1;
  static constexpr int kParams = 4;
  static constexpr int kSums = 0;

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 1>& inputs, const std::array<V, 4>& params, Sums&) {
    const auto& [mean, scale, bias, slope] = params;
    const V z = multiply_add(inputs[0] - mean, scale, bias);
    return {select(z > V(0), z, slope * z)};
  }

  template <typename R>
  static Expected<NormPreluForward, R> expected(
      const std::array<R, 1>& inputs, const std::array<R, 4>& params) {
    const auto [mean, scale, bias, slope] = params;
    const R z = (inputs[0] - mean) * scale + bias;
    return {{z > 0 ? z : slope * z}, {}};
  }
};

// Sums of gz, gz * (x - mean) and, where z <= 0, g * z; gz is the gradient behind the PReLU. In
// eval mode also dL/dx = gz * scale.
template <bool kEval>
struct NormPreluReduce {
  static constexpr int kInputs = 2;
  static constexpr int kOutputs = kEval ? 1 : 0;
  static constexpr int kParams = 4;
  static constexpr int kSums = 3;

  template <typename V, typename Sums>
  static constexpr std::array<V, kOutputs> apply(
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
    if constexpr (kEval) {
      return {gz * scale};
    } else {
      return {};
    }
  }

  template <typename R>
  static Expected<NormPreluReduce, R> expected(
      const std::array<R, 2>& inputs, const std::array<R, 4>& params) {
    const auto [g, x] = inputs;
    const auto [mean, scale, bias, slope] = params;
    const R z = (x - mean) * scale + bias;
    const R gz = z > 0 ? g : slope * g;
    Expected<NormPreluReduce, R> result;
    if constexpr (kEval) {
      result.outputs = {gz * scale};
    }
    result.terms = {gz, gz * (x - mean), z > 0 ? R(0) : g * z};
    return result;
  }
};

// dL/dx = gz * scale + offset + (x - mean) * factor; offset and factor take the part of the
// gradient that goes through the statistics.
struct NormPreluApply {
  static constexpr int kInputs = 2;
  static constexpr int kOutputs = 1;
  static constexpr int kParams = 6;
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

  template <typename R>
  static Expected<NormPreluApply, R> expected(
      const std::array<R, 2>& inputs, const std::array<R, 6>& params) {
    const auto [g, x] = inputs;
    const auto [mean, scale, bias, slope, offset, factor] = params;
    const R z = (x - mean) * scale + bias;
    const R gz = z > 0 ? g : slope * g;
    return {{gz * scale + offset + (x - mean) * factor}, {}};
  }
};

}  // namespace torch_ext::testing_operations
