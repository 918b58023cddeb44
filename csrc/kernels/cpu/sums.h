// Sums of many terms. Vectors add short chains (at most kChain<acc_t> terms) in the data's own
// precision and hand them on to a wider sum, so that the error does not grow with the number of
// terms:
//   float terms   -> double
//   double terms  -> a pair of doubles (Knuth's TwoSum); the second carries what the first lost
// A non-finite term gives what the plain IEEE sum gives: the correction is dropped where the sum is
// not finite. Knows no memory layout and no SIMD.
#pragma once

#include <cmath>
#include <type_traits>

namespace torch_ext::cpu {

// A term's way through a sum: one rounding of the product, kChain - 1 in its chain, two where four
// chains meet. The contract allows 16, of float64 8 (docs/how-it-works.md counts them); data that
// needs all of them exists (tests/test_error_bound.py).
template <typename acc_t>
inline constexpr int kChain = 12;
template <>
inline constexpr int kChain<double> = 5;

// s + error == a + b exactly, where s is the rounded sum. T: double or a SIMD vector of doubles.
template <typename T>
struct TwoSum {
  T sum;
  T error;

  TwoSum(const T& a, const T& b) : sum(a + b) {
    const T b_rounded = sum - a;
    error = (a - (sum - b_rounded)) + (b - b_rounded);
  }
};

template <typename acc_t>
struct WideSum;

template <>
struct WideSum<float> {
  double value = 0;

  void add(const WideSum& other) { value += other.value; }
  double total() const { return value; }
};

template <>
struct WideSum<double> {
  double value = 0;
  double correction = 0;

  void add(const WideSum& other) {
    const TwoSum<double> next(value, other.value);
    value = next.sum;
    correction += next.error + other.correction;
  }
  double total() const { return std::isfinite(value) ? value + correction : value; }
};

}  // namespace torch_ext::cpu
