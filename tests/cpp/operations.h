// Operations for the engines' tests, CPU and CUDA: a made-up one that fills every count the engines
// promise to take, and the formulas of the library's a second time, in plain scalars of any width
// R: what a test expects.
#pragma once

#include <array>
#include <type_traits>

#include "kernels/norm_prelu.h"
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

// Norm + PReLU: its four operations.
template <typename Op, typename R>
Expected<Op, R> expected_of_norm(
    const std::array<R, Op::kInputs>& inputs, const std::array<R, Op::kParams>& params) {
  Expected<Op, R> result;
  if constexpr (std::is_same_v<Op, Moments>) {
    const R d = inputs[0] - params[0];
    result.terms = {d, d * d};
  } else if constexpr (std::is_same_v<Op, NormPreluForward>) {
    const auto [mean, scale, bias, slope] = params;
    const R z = (inputs[0] - mean) * scale + bias;
    result.outputs = {z > 0 ? z : slope * z};
  } else if constexpr (std::is_same_v<Op, NormPreluApply>) {
    const auto [g, x] = inputs;
    const auto [mean, scale, bias, slope, offset, factor] = params;
    const R z = (x - mean) * scale + bias;
    const R gz = z > 0 ? g : slope * g;
    result.outputs = {gz * scale + offset + (x - mean) * factor};
  } else {
    const auto [g, x] = inputs;
    const auto [mean, scale, bias, slope] = params;
    const R z = (x - mean) * scale + bias;
    const R gz = z > 0 ? g : slope * g;
    if constexpr (Op::kOutputs > 0) {
      result.outputs = {gz * scale};
    }
    if constexpr (Op::kSums > 0) {
      result.terms = {gz, gz * (x - mean), z > 0 ? R(0) : g * z};
    }
  }
  return result;
}

// What an element gives by the operation's formula.
template <typename Op, typename R>
Expected<Op, R> expected_of(
    const std::array<R, Op::kInputs>& inputs, const std::array<R, Op::kParams>& params) {
  if constexpr (requires { Op::expected(inputs, params); }) {
    return Op::expected(inputs, params);
  } else if constexpr (std::is_same_v<Op, PreluForward>) {
    return {{inputs[0] > 0 ? inputs[0] : params[0] * inputs[0]}, {}};
  } else if constexpr (std::is_base_of_v<PreluBackward, Op>) {
    const auto [g, x] = inputs;
    Expected<Op, R> result{{x > 0 ? g : params[0] * g}, {}};
    if constexpr (Op::kSums > 0) {
      result.terms = {x > 0 ? R(0) : x * g};
    }
    return result;
  } else {
    return expected_of_norm<Op>(inputs, params);
  }
}

}  // namespace torch_ext::testing_operations
