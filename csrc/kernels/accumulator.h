// Sums of many terms, in two levels: chains of a few terms in the compute type, gathered by an
// accumulator that is wider, so that the error does not grow with the number of terms:
//   float chains   -> a double
//   double chains  -> a pair of doubles (Knuth's TwoSum); the second gathers what the first lost
// A term that is not finite gives what the plain IEEE sum gives. CPU and CUDA.
#pragma once

#include <c10/macros/Macros.h>

namespace torch_ext {

// Terms of a chain. On its way a term is rounded at most as often as this: as a product (where
// there is no fused multiply-add), kChain - 1 times in its chain, twice where four chains meet
// (three times for eight). The contract allows 16, for float64 8 (docs/how-it-works.md counts
// them), and there is data that comes close (tests/test_error_bound.py).
template <typename compute_t>
inline constexpr int kChain = 12;
template <>
inline constexpr int kChain<double> = 4;

// sum + error == a + b exactly, where sum is the rounded one. T: double, or a vector of them.
template <typename T>
struct TwoSum {
  T sum;
  T error;

  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr TwoSum(const T& a, const T& b)
      : sum(a + b), error(a) {
    const T b_rounded = sum - a;
    error = (a - (sum - b_rounded)) + (b - b_rounded);
  }
};

template <typename compute_t>
struct Accumulator;

template <>
struct Accumulator<float> {
  double value;

  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr void add(float chain) {
    value += static_cast<double>(chain);
  }
  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr void add(const Accumulator& other) {
    value += other.value;
  }
  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr double total() const { return value; }
};

template <>
struct Accumulator<double> {
  double value;
  double correction;

  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr void add(double chain) {
    const TwoSum<double> next(value, chain);
    value = next.sum;
    correction += next.error;
  }
  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr void add(const Accumulator& other) {
    add(other.value);
    correction += other.correction;
  }
  // Once the sum is infinite or NaN it stays so. Its corrections are NaN then, so they are not
  // added.
  C10_HOST_DEVICE C10_ALWAYS_INLINE constexpr double total() const {
    return value - value == 0 ? value + correction : value;
  }
};

}  // namespace torch_ext
