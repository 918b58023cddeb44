// PReLU of one element: the only place where its formulas stand. The CPU's vectors, the scalar
// tails, the CUDA kernels and the tests all run these lines. Knows no memory, threads or devices.
//
// He et al., "Delving Deep into Rectifiers" (arXiv:1502.01852), equations 1, 9 and 10, with the
// conventions of torch.nn.PReLU: zero and NaN belong to the slope's side, and sides are chosen by a
// select, so that an infinite slope or gradient never leaks into the side that does not use it.
#pragma once

#include <type_traits>

namespace torch_ext {

// Arithmetic and sums: float for 16-bit and float32 data, double for float64.
template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

}  // namespace torch_ext

namespace torch_ext::math {

// `if_positive` where x > 0, else `otherwise`. SIMD types specialise it.
template <typename T>
struct Select {
  static constexpr T by_sign(T x, T if_positive, T otherwise) {
    return x > T(0) ? if_positive : otherwise;
  }
  static constexpr T product_unless_positive(T x, T other) { return by_sign(x, T(0), x * other); }
};

// In what follows, `weight * T` is rounded to T; a product of two T is a term of a sum and may be
// of a wider type.

// y = x > 0 ? x : w * x
template <typename T, typename Weight>
constexpr T prelu(T x, Weight weight) {
  return Select<T>::by_sign(x, x, weight * x);
}

// dL/dx = x > 0 ? g : w * g
template <typename T, typename Weight>
constexpr T prelu_grad_input(T grad_output, T x, Weight weight) {
  return Select<T>::by_sign(x, grad_output, weight * grad_output);
}

// One element's share of dL/dw = x > 0 ? 0 : x * g
template <typename T>
constexpr auto prelu_grad_weight(T grad_output, T x) {
  return Select<T>::product_unless_positive(x, grad_output);
}

}  // namespace torch_ext::math
