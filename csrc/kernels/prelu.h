// PReLU as channelwise operations (operation.h): the only place in the kernels that has its
// formulas.
//
// He et al., "Delving Deep into Rectifiers" (arXiv:1502.01852), equations 1, 9 and 10, with the
// conventions of torch.nn.PReLU: zero and NaN belong to the side of the slope, and a select chooses
// the side, so that an infinite slope or gradient never affects the side that does not use it.
#pragma once

#include <array>

#include "kernels/operation.h"

namespace torch_ext {

// y = x > 0 ? x : w * x
struct PreluForward {
  static constexpr int kInputs = 1;   // x
  static constexpr int kOutputs = 1;  // y
  static constexpr int kParams = 1;   // w
  static constexpr int kSums = 0;

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 1>& inputs, const std::array<V, 1>& params, Sums&) {
    const auto& [x] = inputs;
    const auto& [w] = params;
    return {select(x > V(0), x, w * x)};
  }
};

// dL/dx = x > 0 ? g : w * g;  dL/dw = the sum of x > 0 ? 0 : x * g
struct PreluBackward {
  static constexpr int kInputs = 2;   // g, x
  static constexpr int kOutputs = 1;  // dL/dx
  static constexpr int kParams = 1;   // w
  static constexpr int kSums = 1;     // dL/dw

  template <typename V, typename Sums>
  static constexpr std::array<V, 1> apply(
      const std::array<V, 2>& inputs, const std::array<V, 1>& params, Sums& sums) {
    const auto& [g, x] = inputs;
    const auto& [w] = params;
    const auto positive = x > V(0);
    sums[0].add_product(x, g, !positive);
    return {select(positive, g, w * g)};
  }
};

}  // namespace torch_ext
