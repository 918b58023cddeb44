// What a channelwise operation is, for the CPU and for CUDA: a struct with
//
//   kInputs    tensors of one shape that it reads, element by element
//   kOutputs   tensors of that shape that it writes
//   kParams    values per channel that it reads
//   kSums      terms that each element adds to sums per channel
//   apply      the formula, in the compute type:
//
//     template <typename V, typename Sums>
//     static constexpr std::array<V, kOutputs> apply(
//         const std::array<V, kInputs>& inputs, const std::array<V, kParams>& params, Sums& sums);
//
// V is a float, a double, or a vector register of them. It has + - * and >, V(0) is zero
// everywhere, and `select` and `multiply_add` below exist for all of them. A comparison gives a
// mask, which has ! and &. Sums are written one way only:
//
//   sums[i].add(term)                   sums[i].add(term, where)
//   sums[i].add_product(a, b)           sums[i].add_product(a, b, where)
//
// A product is added by a fused multiply-add where the instruction set has one, so that it is not
// rounded before the addition. Where `where` is false nothing is added, whatever the term is, NaN
// and infinity included.
#pragma once

#include <c10/macros/Macros.h>

#include <array>
#include <cmath>
#include <type_traits>

namespace torch_ext {

// Arithmetic and sums: float for 16-bit and float32 data, double for float64. Elements are widened
// to it when they are loaded and rounded once when they are stored.
template <typename scalar_t>
using compute_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// `if_true` where the mask is set, else `if_false`: a selection without arithmetic, so that an
// infinity or NaN on the side that is not taken has no effect.
template <typename T>
constexpr T select(bool where, T if_true, T if_false) {
  return where ? if_true : if_false;
}

// a * b + c, rounded once. (Vector registers without a fused multiply-add round twice.)
C10_HOST_DEVICE inline float multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}
C10_HOST_DEVICE inline double multiply_add(double a, double b, double c) {
  return std::fma(a, b, c);
}

// The sums of an operation where they are not wanted.
struct NoSums {
  struct Sum {
    template <typename... Arguments>
    constexpr void add(const Arguments&...) const {}
    template <typename... Arguments>
    constexpr void add_product(const Arguments&...) const {}
  };

  constexpr Sum operator[](int) const { return {}; }
};

// The operation without its sums.
template <typename Op>
struct WithoutSums : Op {
  static constexpr int kSums = 0;

  template <typename Inputs, typename Params, typename Sums>
  static constexpr auto apply(const Inputs& inputs, const Params& params, Sums&) {
    NoSums none;
    return Op::apply(inputs, params, none);
  }
};

// The operation without its outputs: its sums alone.
template <typename Op>
struct WithoutOutputs : Op {
  static constexpr int kOutputs = 0;

  template <typename V, size_t kInputs, typename Params, typename Sums>
  static constexpr std::array<V, 0> apply(
      const std::array<V, kInputs>& inputs, const Params& params, Sums& sums) {
    Op::apply(inputs, params, sums);
    return {};
  }
};

// What a plan needs to know of an operation.
struct OperationCounts {
  int inputs;
  int outputs;
  int params;
  int sums;
};

template <typename Op>
constexpr OperationCounts counts_of() {
  return {Op::kInputs, Op::kOutputs, Op::kParams, Op::kSums};
}

}  // namespace torch_ext
