// What an operation has to give, for the CPU engine's tests: its formula in exact arithmetic,
// together with how far from that the rounded results may be.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cpu/run_tasks.h"
#include "kernels/prelu.h"
#include "operations.h"

namespace torch_ext::cpu_testing {

#if defined(__SIZEOF_FLOAT128__)
using Exact = __float128;
#else
using Exact = long double;
#endif

constexpr Exact magnitude(Exact value) {
  return value < 0 ? -value : value;
}

template <typename scalar_t>
double to_double(const scalar_t& value) {
  return static_cast<double>(value);
}

// Rounded once more where that is 16 bits wide.
template <typename scalar_t>
scalar_t to_scalar(double value) {
  return static_cast<scalar_t>(static_cast<compute_type<scalar_t>>(value));
}

inline bool same_bits(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}

// A number and how far from it the rounded one may be that a program computes instead: a running
// error analysis, so that a test's tolerance follows from the formula.
template <typename compute_t>
struct Bounded {
  static constexpr Exact kUnit = std::is_same_v<compute_t, double> ? 0x1p-53 : 0x1p-24;

  Exact value = 0;
  Exact error = 0;

  constexpr Bounded() = default;
  constexpr Bounded(double exact) : value(exact) {}

  friend constexpr Bounded operator+(const Bounded& a, const Bounded& b) {
    return rounded(a.value + b.value, a.error + b.error);
  }
  friend constexpr Bounded operator-(const Bounded& a, const Bounded& b) {
    return rounded(a.value - b.value, a.error + b.error);
  }
  friend constexpr Bounded operator*(const Bounded& a, const Bounded& b) {
    return rounded(
        a.value * b.value,
        magnitude(a.value) * b.error + magnitude(b.value) * a.error + a.error * b.error);
  }
  friend bool operator>(const Bounded& a, const Bounded& b) {
    const bool above = a.value > b.value;
    ambiguous |= a.error + b.error > 0 && magnitude(a.value - b.value) <= a.error + b.error;
    ++branches[site][above];
    site = (site + 1) % branches.size();
    return above;
  }

  // Comparisons: whether one could turn out the other way, and the results of the first, second ...
  // one since `site` was set to zero.
  static inline bool ambiguous = false;
  static inline size_t site = 0;
  static inline std::array<std::array<int64_t, 2>, 8> branches{};

 private:
  static constexpr Bounded rounded(Exact value, Exact error) {
    Bounded result;
    result.value = value;
    result.error = error + kUnit * (magnitude(value) + error);
    return result;
  }
};

using testing_operations::expected_of;

// Results and sums of operands in memory. `exact`: nothing is rounded before a result is stored, as
// with small integers and powers of two, so that all must be right to the bit.
template <typename Op, typename scalar_t>
class Oracle {
 public:
  using compute_t = compute_type<scalar_t>;
  using B = Bounded<compute_t>;
  using Element = testing_operations::Expected<Op, B>;
  using Totals = std::array<double, Op::kSums>;

  Oracle(const ChannelView& view, const cpu::Operands<Op, scalar_t>& operands, bool exact)
      : view_(view), exact_(exact), sums_(view.channels), magnitudes_(view.channels) {
    B::branches = {};
    for (int64_t i = 0; i < view.numel(); ++i) {
      add(element(view, operands, i), i / view.inner % view.channels);
    }
    if (view.numel() >= 1000) {
      expect_both_branches();
    }
  }

  // Sets B::ambiguous where rounding may change the side that is taken.
  static Element element(
      const ChannelView& view, const cpu::Operands<Op, scalar_t>& operands, int64_t i) {
    const int64_t channel = i / view.inner % view.channels;
    std::array<B, Op::kInputs> inputs;
    for (int k = 0; k < Op::kInputs; ++k) {
      inputs[k] = B(to_double(operands.inputs[k][i]));
    }
    std::array<B, Op::kParams> params;
    for (int p = 0; p < Op::kParams; ++p) {
      const auto& [values, is_compute_type, stride] = operands.params[p];
      const int64_t at = channel * stride;
      params[p] =
          B(is_compute_type ? to_double(static_cast<const compute_t*>(values)[at])
                            : to_double(static_cast<const scalar_t*>(values)[at]));
    }
    B::ambiguous = false;
    B::site = 0;
    return expected_of<Op>(inputs, params);
  }

  void expect_outputs(const std::array<scalar_t*, Op::kOutputs>& outputs) const {
    for (int64_t i = 0; i < view_.numel(); ++i) {
      for (int o = 0; o < Op::kOutputs && !left_out_[i]; ++o) {
        const double actual = to_double(outputs[o][i]);
        const B& expected = outputs_[i][o];
        if (exact_) {
          const auto rounded = to_double(to_scalar<scalar_t>(static_cast<double>(expected.value)));
          ASSERT_TRUE(same_bits(actual, rounded))
              << "element " << i << " is " << actual << " instead of " << rounded;
        } else {
          const Exact most = magnitude(expected.value) + expected.error;
          const Exact tolerance = expected.error + kStored * most + kSubnormal;
          ASSERT_LE(error_of(actual, expected), static_cast<double>(tolerance)) << "element " << i;
        }
      }
    }
  }

  void expect_sums(const std::vector<Totals>& totals) const {
    for (int64_t c = 0; c < view_.channels; ++c) {
      for (int s = 0; s < Op::kSums; ++s) {
        const B& expected = sums_[c][s];
        nonzero_sums[s] += expected.value != 0;
        if (exact_) {
          ASSERT_EQ(totals[c][s], static_cast<double>(expected.value))
              << "sum " << s << " of channel " << c;
        } else {
          ASSERT_LE(error_of(totals[c][s], expected), static_cast<double>(tolerance(c, s)))
              << "sum " << s << " of channel " << c;
        }
      }
    }
  }

  Exact sum(int64_t channel, int s) const { return sums_[channel][s].value; }
  // The contract allows 16 roundings of every term, for double 8. One of them made the term and is
  // in its `error`.
  Exact tolerance(int64_t channel, int s) const {
    constexpr Exact kRoundings = std::is_same_v<compute_t, double> ? 7 : 15;
    const B& sum = sums_[channel][s];
    return sum.error + kRoundings * B::kUnit * magnitudes_[channel][s] +
           magnitude(sum.value) * 0x1p-53;
  }
  int64_t left_out() const {  // elements that rounding may put on either side
    return std::count(left_out_.begin(), left_out_.end(), true);
  }

  // Sums other than zero that were expected so far, by all oracles of the operation: that there
  // are some is for tests to see.
  static inline std::array<int64_t, Op::kSums> nonzero_sums{};

 private:
  void add(const Element& element, int64_t channel) {
    left_out_.push_back(B::ambiguous && !exact_);
    outputs_.push_back(element.outputs);
    for (int s = 0; s < Op::kSums; ++s) {
      sums_[channel][s].value += element.terms[s].value;
      sums_[channel][s].error += element.terms[s].error;
      magnitudes_[channel][s] += magnitude(element.terms[s].value);
    }
  }

  // (As a double, because GoogleTest prints those.)
  static double error_of(double actual, const B& expected) {
    return static_cast<double>(magnitude(actual - expected.value));
  }

  static void expect_both_branches() {
    for (const auto& [no, yes] : B::branches) {
      if (no + yes > 0) {
        EXPECT_GT(no * 8, yes);
        EXPECT_GT(yes * 8, no);
      }
    }
  }

  // What rounding to 16 bits adds: relative, and where a float16 is subnormal.
  static constexpr Exact kStored = sizeof(scalar_t) > 2                  ? 0
                                   : std::is_same_v<scalar_t, c10::Half> ? 0x1p-11
                                                                         : 0x1p-8;
  static constexpr Exact kSubnormal = std::is_same_v<scalar_t, c10::Half> ? 0x1p-25 : 0;

  ChannelView view_;
  bool exact_;
  std::vector<bool> left_out_;
  std::vector<std::array<B, Op::kOutputs>> outputs_;
  std::vector<std::array<B, Op::kSums>> sums_;
  std::vector<std::array<Exact, Op::kSums>> magnitudes_;
};

}  // namespace torch_ext::cpu_testing
