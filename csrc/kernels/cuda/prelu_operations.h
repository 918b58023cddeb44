// PReLU as the CUDA walkers take it: what one element writes, and its term of the channel's sum. A
// term of zeros must be zero. Knows no memory and no threads.
#pragma once

#include "kernels/prelu_math.h"

namespace torch_ext::cuda {

struct PreluForward {
  static constexpr bool kReadsGradOutput = false;
  static constexpr bool kReduces = false;

  template <typename T>
  static constexpr T output(T x, T /*grad_output*/, T weight) {
    return math::prelu(x, weight);
  }
};

template <bool with_grad_weight>
struct PreluBackward {
  static constexpr bool kReadsGradOutput = true;
  static constexpr bool kReduces = with_grad_weight;

  template <typename T>
  static constexpr T output(T x, T grad_output, T weight) {
    return math::prelu_grad_input(grad_output, x, weight);
  }

  template <typename T>
  static constexpr T term(T x, T grad_output) {
    return math::prelu_grad_weight(grad_output, x);
  }
};

}  // namespace torch_ext::cuda
